"""The Python API, as a notebook uses it: what stages return, and that views are those that students are trained on."""

import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from documents import ROOT, blocks
from small import shards

import fastcondense as fc
from fastcondense.cli import main
from fastcondense.files import read_json
from fastcondense.students import students
from fastcondense.tensor_files import read_tensors

SMALL = {
    "squeeze.teachers": ("zoo/convnet3_w32",),
    "squeeze.epochs": 4,
    "recover.iterations": 4,
    "train.student": "zoo/convnet1",
    "train.epochs": 3,
    "train.batch_size": 8,
    "train.seeds": 1,
    "train.evaluate_every": 3,
    "evaluate.baselines": ["random_soft"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run whose stages were called one after another: what they returned, and the batches that the student saw."""
    out, seen = tmp_path_factory.mktemp("api") / "run", []
    run = fc.run(fc.recipe("sre2l/digits-ipc2", **SMALL), out=out, device="cpu", is_silent=True)
    assert not out.exists(), "nothing is written before a stage is called"

    def recording(*args, **more):
        task = task_of(*args, **more)
        if args[1] == students.CONDENSED:
            make = task.make
            task = students.replace(task, make=lambda item: seen.append(make(item)) or seen[-1])
        return task

    with pytest.MonkeyPatch.context() as patch:
        task_of = students.task_of
        patch.setattr(students, "task_of", recording)
        teachers, images, replay, trained = run.squeeze(), run.recover(), run.relabel(), run.train()
    returned = SimpleNamespace(teachers=teachers, images=images, replay=replay, trained=trained, rows=run.evaluate())
    return SimpleNamespace(run=run, out=out, seen=seen, returned=returned)


def test_stages_return_what_lies_in_the_folder(made):
    run, out, returned = made.run, made.out, made.returned
    assert returned.teachers == {"zoo/convnet3_w32": out / "teachers/zoo-convnet3_w32/weights.safetensors"}
    assert returned.images.shape == (20, 3, 8, 8) and returned.images.dtype == torch.uint8
    stored = torch.cat([read_tensors(path)[0]["images"] for path in sorted(out.glob("condensed/shard-*"))])
    assert returned.images.long().sum() == stored.long().sum() and torch.equal(run.images, returned.images)
    assert run.labels.tolist() == [k for k in range(10) for _ in range(2)] and run.classes == tuple("0123456789")
    manifest, result = read_json(out / "condensed/manifest.json"), read_json(out / "result.json")
    assert returned.replay == manifest["replay"]
    assert list(returned.trained) == ["condensed", "random_soft"]
    assert all(path.is_file() for paths in returned.trained.values() for path in paths)
    assert [row["trained_on"] for row in returned.rows] == ["condensed", "random_soft"]
    for row, scores in zip(returned.rows, (result, result["baselines"]["random_soft"]), strict=True):
        assert row["top1_last"] == scores["top1_last"]["mean"] and row["top5_last_std"] == scores["top5_last"]["std"]
    assert repr(run) == f"<Condensation sre2l/digits-ipc2 in {out}>"


def test_views_are_those_of_the_training_loop(made):
    views = fc.views(made.run)
    pairs = [pair for epoch in views for pair in epoch]
    assert len(views) == 3 and [len(epoch) for epoch in views] == [3, 3, 3] and len(pairs) == len(made.seen) == 9
    for (images, probabilities), batch in zip(pairs, made.seen, strict=True):
        assert torch.equal(images, batch.views)
        assert torch.equal(probabilities, (batch.wanted.logits[0] / made.run.recipe.train.temperature).softmax(1))
    again = fc.views(made.out, 5, labels="logits", epochs=7)  # in the folder of a run, without a word on the data
    assert len(again) == 7 and len(again[0]) == 4 and len(again[-2:]) == 2
    images, logits = (torch.cat(part) for part in zip(*again[1], strict=True))
    assert torch.equal(images, torch.cat([batch.views for batch in made.seen[3:6]])), "batches do not enter"
    wanted = torch.cat([batch.wanted.logits[0] for batch in made.seen[3:6]])
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)  # float32 of other batches


def test_hard_labels_are_shares_of_the_classes(made):
    hard = fc.run(fc.recipe("sre2l/digits-ipc2", **SMALL, **{"labels.source": "hard"}), out=made.out, is_silent=True)
    images, labels = next(iter(fc.views(hard, device="cpu")[0]))
    assert torch.equal(images, made.seen[0].views)
    wanted = made.seen[0].wanted
    expected = torch.zeros(8, 10)
    for row, (own, other, share) in enumerate(zip(wanted.labels, wanted.partners, wanted.share, strict=True)):
        expected[row, own] += share
        expected[row, other] += 1 - share
    assert torch.equal(labels, expected)
    with pytest.raises(ValueError, match="hard labels have no logits"):
        next(iter(fc.views(hard, labels="logits")[0]))


def test_a_bundle_is_a_set(made, tmp_path):
    assert main(["bundle", str(made.out), "--out", str(tmp_path / "set.zip")]) == 0
    loaded = fc.load(tmp_path / "set.zip", out=tmp_path / "unpacked", device="cpu", is_silent=True)
    assert torch.equal(loaded.images, made.run.images) and loaded.classes == made.run.classes
    images, labels = next(iter(fc.views(loaded)[2]))
    mine = next(iter(fc.views(made.run)[2]))
    assert torch.equal(images, mine[0]) and torch.equal(labels, mine[1])
    assert not (tmp_path / "unpacked").exists(), "nothing is unpacked to look at it"
    assert loaded.relabel() == made.returned.replay and shards(tmp_path / "unpacked").keys()


def test_the_command_line_goes_on_with_a_run_and_the_other_way_round(made, tmp_path, capsys):
    assert main(["evaluate", str(made.out)]) == 0
    assert "random real, soft labels" in capsys.readouterr().out
    out = tmp_path / "run"
    flags = "--squeeze.teachers zoo/convnet3_w32 --squeeze.epochs 4 --recover.iterations 4 --device cpu".split()
    assert main(["recover", "--recipe", "sre2l/digits-ipc2", "--out", str(out), *flags]) == 0
    assert torch.equal(fc.load(out).images, made.run.images), "the same bits by either way"
    kept = {path.name for path in made.out.iterdir()} - {"students", "results", "result.json"}
    assert kept - {path.name for path in out.iterdir()} == set()


def test_labels_of_other_settings_are_those_that_come_back(made):
    recipe = fc.recipe("sre2l/digits-ipc2", **SMALL, **{"labels.flip": 0.0})
    assert fc.run(recipe, out=made.out, device="cpu", is_silent=True).relabel()["views"]["flip"] == 0.0
    assert made.run.relabel() == made.returned.replay


def test_a_silent_run_prints_nothing_and_logs_everything(made, capfd):
    fc.load(made.out, is_silent=True).relabel()
    assert capfd.readouterr() == ("", "")
    said = [json.loads(line) for line in (made.out / "log.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "cost" for event in said) >= 5
    assert (made.out / "environment.json").is_file() and (made.out / ".lock").is_file()
    fc.load(made.out).relabel()
    assert "relabel: replay needs 0 bytes" in capfd.readouterr().out


def test_recipes_are_found_and_changed():
    assert "rded/cifar10" in fc.recipes("*/cifar10*") and all("cifar10" in name for name in fc.recipes("*/cifar10*"))
    changed = fc.recipe("rded/cifar10-ipc10", **{"train.epochs": 50, "dataset.mean": (0.5, 0.5, 0.5), "seed": 3})
    plain = fc.recipe("rded/cifar10-ipc10")
    assert (changed.train.epochs, changed.dataset.mean, changed.seed) == (50, (0.5, 0.5, 0.5), 3)
    assert changed.name == plain.name == "rded/cifar10-ipc10" and changed.train.lr == plain.train.lr
    assert fc.recipe("rded/cifar10-ipc10", train={**vars(plain.train), "epochs": 50}).train.epochs == 50


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.epoch": 5}, "unknown key 'train.epoch'; the nearest valid one is 'train.epochs'"),
        ({"train.epochs": "many"}, "train.epochs must be of type int, got 'many'"),
        ({"train.epochs": 0}, "train.epochs must be at least 1, got 0"),
        ({"seed.train": 1}, "seed.train cannot be 1"),
        ({"squeeze.weights": None}, "squeeze.weights cannot be None"),
        ({"train.lr": torch.ones(1)}, "a setting is of no type that a recipe has"),
    ],
)
def test_wrong_settings_are_one_line(settings, message):
    with pytest.raises(ValueError, match=r"^recipe sre2l/digits-ipc10: ") as caught:
        fc.recipe("sre2l/digits-ipc10", **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_of_settings_changes_what_it_names_alone():
    plain = fc.recipe("fastcondense/digits-ipc1")
    by_table = fc.recipe(
        "fastcondense/digits-ipc1", train={"epochs": np.int64(3)}, recover={"initial": {"kind": "real"}}
    )
    assert by_table == fc.recipe("fastcondense/digits-ipc1", **{"train.epochs": 3, "recover.initial.kind": "real"})
    assert by_table.train == replace(plain.train, epochs=3) != plain.train
    assert fc.recipe("fastcondense/digits-ipc1", train={}) == plain
    for settings in ({"trian": {}}, {"train": {"xyz": {}}}, {"train": {"epochs": {}}}):
        with pytest.raises(ValueError, match=r"unknown key '(trian|train.xyz)'|train.epochs must be of type int"):
            fc.recipe("fastcondense/digits-ipc1", **settings)
    with pytest.raises(ValueError, match=r"labels.mix_alpha is read where labels.mix is cutmix or mixup"):
        fc.recipe("fastcondense/digits-ipc1", labels={"mix": "none", "mix_alpha": 0.3})


def test_a_number_of_images_brings_its_table():
    assert fc.recipe("cvdd/cifar10-ipc10", ipc=50).recover == fc.recipe("cvdd/cifar10-ipc50").recover
    assert fc.recipe("cvdd/cifar10-ipc10").recover != fc.recipe("cvdd/cifar10-ipc50").recover
    assert fc.recipe("cvdd/cifar10", ipc=np.int64(1), seed=np.int32(3)) == fc.recipe("cvdd/cifar10", ipc=1, seed=3)


def test_wrong_words_of_the_interface_are_one_line(made):
    with pytest.raises(ValueError, match="labels must be probabilities or logits, got 'probability'"):
        fc.views(made, labels="probability")
    for wrong in ({"epochs": 0}, {"epochs": 1.5}, {"batch_size": 2.5}, {"student": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a whole number of at least"):
            fc.views(made, **wrong)
    with pytest.raises(ValueError, match="track must be among tensorboard, wandb, got 'nope'"):
        fc.run("sre2l/digits-ipc10", track=["nope"])
    with pytest.raises(ValueError, match="a path is empty"):
        fc.run("sre2l/digits-ipc10", out="")


def test_what_is_not_there_is_one_line(made, tmp_path):
    with pytest.raises(ValueError, match="the nearest is 'sre2l/digits'"):
        fc.run("sre2l/digit-ipc10")
    with pytest.raises(ValueError, match="data set 'cifar10' needs --data DIR"):
        fc.run("rded/cifar10-ipc10", out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"neither the folder of a run, with a recipe\.toml, nor a bundle"):
        fc.load(tmp_path)
    with pytest.raises(ValueError, match="holds images of another recipe"):
        fc.run(fc.recipe("sre2l/digits-ipc2", **SMALL, **{"recover.lr": 0.5}), out=made.out, is_silent=True).recover()
    assert not (tmp_path / "run").exists()


def test_code_of_a_strangers_recipe_does_not_run(made, tmp_path):
    shutil.copytree(made.out, tmp_path / "run")
    path = tmp_path / "run" / "recipe.toml"
    path.write_text(path.read_text().replace('student = "zoo/convnet1"', 'student = "evil.py:net"'))
    with pytest.raises(ValueError, match=r"'evil\.py:net' is code that the recipe of a run or bundle names"):
        fc.load(tmp_path / "run", device="cpu", is_silent=True).train()


def test_importing_takes_no_time_and_hides_no_name():
    import fastcondense.run  # a module of the name of a function

    assert fc.run.__name__ == "run" and callable(fc.run) and fastcondense.run is fc.run
    assert sys.modules["fastcondense.run"].Run and set(fc.__all__) <= set(dir(fc))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fc.nothing  # noqa: B018


def test_a_run_stays_where_it_was_begun_and_begins_again_where_it_was_deleted(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = fc.run(fc.recipe("sre2l/digits-ipc1", **SMALL), out="mine", device="cpu", is_silent=True)
    images = run.recover()
    loaded = fc.load("mine", device="cpu", is_silent=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(run.images, images) and torch.equal(loaded.recover(), images)
    assert not list((tmp_path / "elsewhere").iterdir())
    shutil.rmtree(tmp_path / "mine")
    assert torch.equal(run.recover(), images) and (tmp_path / "mine").is_dir()


def test_the_notebook_runs_and_shows_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]
    names = {"__name__": "__main__"}
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None, "committed without outputs"
        exec("".join(cell["source"]), names)
    assert names["images"].shape == (10, 3, 8, 8)
    assert 0 <= names["accuracy"] <= 100 and len(names["rows"]) == 3
    assert "top-1" in capsys.readouterr().out


def test_the_pages_code_is_the_notebooks():
    page = [block.text for block in blocks(ROOT / "docs" / "python.md") if block.language == "python"]
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]
    notebook = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for text in page:
        compile(text, "python.md", "exec")
    assert page and page[0].strip() in notebook
