"""The page on one's own data, teacher and loss: its blocks are run as they stand, with fewer epochs."""

import hashlib
import json
import runpy
import shlex
import shutil
import sys

import numpy as np
import pytest
import torch
from documents import ROOT, Block, blocks, commands, shell_lines
from sklearn.datasets import load_digits

import fastcondense as fc
from fastcondense import stages
from fastcondense.cli import main
from fastcondense.files import read_json
from fastcondense.recipe.recipe import load
from fastcondense.rng import Stream
from fastcondense.tensor_files import read_tensors

PAGE = ROOT / "docs" / "own.md"
FEWER = (
    "--squeeze.epochs 3 --recover.iterations 4 --train.epochs 2 --train.evaluate-every 2 "
    "--evaluate.baselines random_soft --device cpu"
).split()


def run(block: Block) -> None:
    """Runs what a shell block says, in this process."""
    for line in shell_lines(block):
        program, *rest = shlex.split(line, comments=True)
        if program == "python":
            runpy.run_path(rest[0], run_name="__main__")
        else:
            for arguments in commands(line):
                own = FEWER if "--evaluate.baselines" not in line else FEWER[:-4] + FEWER[-2:]
                assert main([*arguments, *own]) == 0, line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The current folder, in which all blocks were run in their order."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        for name in ("picture", "inspect"):  # half of the time, and tested elsewhere
            patch.setattr(stages, name, lambda _run: None)
        for block in blocks(PAGE):
            if block.file is not None:
                (folder / block.file).write_text(block.text)
            elif block.language == "bash":
                run(block)
        yield folder


def result(folder, name):
    return json.loads((folder / "runs" / name / "result.json").read_text())


def test_blocks_are_about_ten_lines():
    lengths = [block.text.count("\n") for block in blocks(PAGE)]
    assert len(lengths) == 13 and max(lengths) <= 13


def test_the_data_set_is_the_one_that_was_written(folder):
    assert len(list((folder / "photos").glob("*/*.png"))) == len(load_digits().images)
    manifest = read_json(folder / "runs" / "my_recipe" / "condensed" / "manifest.json")
    assert manifest["classes"] == [f"digit-{k}" for k in range(10)] and manifest["ipc"] == 5
    assert result(folder, "my_recipe")["bytes"]["images"] == 10 * 5 * 3 * 8 * 8


def test_its_mean_and_deviation_are_the_recipes(folder):
    pixels = np.rint(load_digits().images * 15).astype(np.uint8) / 255
    dataset = load(str(folder / "my_recipe.toml")).dataset
    np.testing.assert_allclose(dataset.mean, pixels.mean(), atol=0.005)
    np.testing.assert_allclose(dataset.std, pixels.std(), atol=0.005)


def test_teachers_are_the_function_and_the_file(folder):
    trained, given = (
        read_json(folder / "runs" / name / "condensed" / "manifest.json")["teachers"]
        for name in ("my-teacher", "my-weights")
    )
    assert list(trained) == ["my_networks.py:small"]
    assert given == trained, "the weights that were read are those that were trained"
    students = sorted(path.name for path in (folder / "runs" / "my-teacher" / "students").iterdir())
    assert len(students) == 1 and students[0].startswith("my_networks.py-small-")


def test_the_loss_is_part_of_what_made_the_images(folder):
    own, without = (
        read_json(folder / "runs" / name / "condensed" / "manifest.json") for name in ("my-loss", "my_recipe")
    )
    assert own["recipe"]["recover"]["loss"] == "my_loss.py:unlike" and len(own["recipe"]["loss_sha256"]) == 64
    assert "loss_sha256" not in without["recipe"]
    assert own["digests"] != without["digests"] and own["teachers"] == without["teachers"]
    assert set(result(folder, "my-loss")["baselines"]) == {"random_soft"}


def test_the_method_is_the_functions(folder):
    """Images against torch's own generator and mean, labels against the smoothed classes, scores beside it."""
    run = fc.load(folder / "runs" / "my-method", code=("my_scans.py:load", "my_labels.py:smooth"), is_silent=True)
    scans, digits = load_digits(return_X_y=True)
    of_three = torch.from_numpy((scans[:1400][digits[:1400] == 3].reshape(-1, 1, 8, 8) * 15).astype(np.uint8))
    with Stream(0, "initial/own").torch_generator(3, 1):
        wanted = of_three[torch.randperm(len(of_three))[:3]].float().mean(0).round()
    begun = read_tensors(next((folder / "runs" / "my-method").glob("initial-*/class-00003.safetensors")))[0]["images"]
    assert torch.equal(begun[1], wanted.expand(3, 8, 8).to(torch.uint8)) and begun.shape == (5, 3, 8, 8)
    manifest = read_json(folder / "runs" / "my-method" / "condensed" / "manifest.json")
    assert manifest["classes"] == [f"digit-{k}" for k in range(10)]
    for key, source, file in (
        ("recipe", "initial_sha256", "my_method.py"),
        ("replay", "source_sha256", "my_labels.py"),
    ):
        assert manifest[key][source] == hashlib.sha256((folder / file).read_bytes()).hexdigest()
    assert set(result(folder, "my-method")["baselines"]) == {"random_soft", "my_method.py:brightest"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _, logits = next(iter(fc.views(run, labels="logits", device="cpu")[0]))
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(len(logits)))
    assert logits.exp().max() <= 0.9101


@pytest.mark.parametrize(
    ("setting", "body", "message"),
    [
        (
            "recover.initial.kind",
            "return images[0][:, :3]",
            "must give a tensor [3, 8, 8] of levels from 0 to 255, got (3, 3, 8)",
        ),
        ("recover.initial.kind", "return images[0].float() - 300", "must give levels from 0 to 255, got -300"),
        (
            "evaluate.baselines",
            "return images.tolist()",
            "must give a tensor [5, 3, 8, 8] of levels from 0 to 255, got list",
        ),
        ("labels.source", "return images", "must give logits [50, 10], got (50, 3, 8, 8) of torch.float32"),
        ("dataset.name", "return images, images", "must give classes, (images, labels), and (images, labels) of test"),
        ("dataset.name", "return 'ab', ([], []), ([], [])", "training, holds no images"),
    ],
)
def test_what_a_function_must_not_give_is_one_line(folder, tmp_path, monkeypatch, capsys, setting, body, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "wrong.py").write_text(f"def wrong(images, *rest):\n    {body}\n")
    data = [] if setting == "dataset.name" else ["--data", str(folder / "photos")]
    shutil.copytree(folder / "runs" / "my_recipe" / "teachers", tmp_path / "run" / "teachers")
    recipe = ["--recipe", str(folder / "my_recipe.toml"), *data, "--out", "run", *FEWER[:-4], "--device", "cpu"]
    assert main(["run", *recipe, f"--{setting}", "wrong.py:wrong"]) == 1
    said = capsys.readouterr().err
    assert message in said and f"{setting} 'wrong.py:wrong'" in said


def test_a_name_that_is_none_lists_those_that_are(capsys):
    assert main(["run", "--recipe", "sre2l/digits-ipc1", "--recover.initial.kind", "moise"]) == 1
    said = capsys.readouterr().err
    kinds = "noise, real, herding, medoid, bps, median, difficulty, mosaic"
    assert f"recover.initial.kind must be one of {kinds}, or your own module:function" in said


def test_a_strangers_functions_do_not_run(folder, capsys):
    assert main(["evaluate", str(folder / "runs" / "my-method"), "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "dataset.name 'my_scans.py:load' is code that the recipe of a run or bundle names" in said
