"""Folders of runs, names and networks of strangers: nothing else is read or written, and names are text."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from hostile_files import RESULT, TOML
from rich.table import Table
from small import image_folder

from fastcondense import trust
from fastcondense.cli import main
from fastcondense.data.jobs import Job
from fastcondense.data.sources import decoding_threads
from fastcondense.loaders.reading import check_folder, open_file
from fastcondense.log import Log
from fastcondense.networks import zoo
from fastcondense.networks.fit import fit
from fastcondense.recipe.recipe import Recipe, from_toml
from fastcondense.recipe.settings import Dataset, Optimization
from fastcondense.records import MOST_SEEDS, check_names, checked
from fastcondense.recover.unfinished import Unfinished, remaining
from fastcondense.report import plots
from fastcondense.rng import Stream
from fastcondense.sets.results import read_results
from fastcondense.teachers.kept import rebuild
from fastcondense.tensor_files import state_sha256, write_tensors
from fastcondense.words import printable
from fastcondense.workers import distributed, launched
from fastcondense.workers.work import Items, draw

NAMES = ["[/bold]", "[red]x[/red]", ":smile:", "$\\frac{$", "$$", "a\x1b[2Jb", "\udcff", "\u202ename", "{x}", "%s"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_are_shown_as_they_are(name, capsys):
    log, table = Log(), Table(title=name, caption=name)
    table.add_column(name)
    table.add_row(name)
    log.console.print(table)
    log.say(name)
    out = capsys.readouterr().out
    assert out.count(printable(name)) == 5 and "\x1b" not in out
    assert printable(name).encode() and "\x1b" not in printable(name)


@pytest.mark.parametrize("name", [name for name in NAMES if name.isprintable()])
def test_names_are_no_mathematics(name):
    drawn = plots.dots([name, "b"], [([1.0, 2.0], 0)], name)
    assert "<svg" in drawn


def test_a_class_name_that_is_no_utf_8_is_told_before_anything_is_made(tmp_path, capsys):
    root = image_folder(tmp_path / "data")
    for split in ("train", "val"):
        (root / split / "class1").rename((root / split / "class1").with_name("\udcff"))
    more = ["--dataset.name", "folder", "--data", str(root), "--out", str(tmp_path / "o"), "--device", "cpu"]
    assert main(["squeeze", "--recipe", "sre2l/digits-ipc1", *more]) == 1
    assert "the name '\\udcff' is no UTF-8" in capsys.readouterr().err and not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["", "x" * 1001])
def test_a_class_name_that_no_manifest_can_hold_is_told(name):
    with pytest.raises(ValueError, match=rf"^the data: a name needs 1 to 1000 characters, got {len(name)}"):
        check_names(["ant", name], "the data")
    check_names(["ant", "x" * 1000], "the data")


def test_a_lone_surrogate_in_a_record_is_named():
    with pytest.raises(ValueError, match=r"^student.json is damaged: field .*surrogates"):
        checked({"seconds": "\ud800"}, dict[str, float], "student.json")


def test_students_are_no_more_than_a_result_can_hold():
    most = from_toml(f"[train]\nseeds = {MOST_SEEDS}", "S")
    assert most.train.seeds == MOST_SEEDS
    with pytest.raises(ValueError, match=r"train\.seeds"):
        from_toml(f"[train]\nseeds = {MOST_SEEDS + 1}", "S")


# --- folders of runs, and large networks -----------------------------------------------------------------------------

OURS = [
    "recipe.toml",
    "data.json",
    "log.jsonl",
    "condensed/shard-00000.safetensors",
    "labels/seed0/logits.npy",
    "students",
]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
@pytest.mark.parametrize("command", ["inspect", "status", "bundle", "verify", "export", "train"])
def test_what_is_no_file_in_a_runs_folder_is_neither_read_nor_written(tmp_path, capsys, name, kind, command):
    (tmp_path / "elsewhere").write_text("mine")
    run = tmp_path / "run"
    (run / name).parent.mkdir(parents=True)
    (run / "recipe.toml").write_text(TOML)
    (run / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to("/dev/zero" if kind == "device" else tmp_path / "elsewhere")
    assert (
        main([command, str(run), *(["--out", str(tmp_path / "out")] if command in ("bundle", "export") else [])]) == 1
    )
    said = capsys.readouterr().err
    assert f"{run / name} is a {'pipe' if kind == 'pipe' else 'link out of'}" in said and said.count("\n") == 1
    assert (tmp_path / "elsewhere").read_text() == "mine" and not (tmp_path / "out").exists()


def test_a_linked_run_and_links_within_it_are_read(tmp_path):
    (tmp_path / "disk" / "teachers").mkdir(parents=True)
    (tmp_path / "disk" / "x").symlink_to("teachers")
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    check_folder(tmp_path / "run")
    (tmp_path / "disk" / "y").symlink_to("../disk2")
    with pytest.raises(ValueError, match="run/y is a link out of"):
        check_folder(tmp_path / "run")


def test_what_is_put_in_a_files_place_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "x")
    monkeypatch.setattr("fastcondense.loaders.reading.check_file", lambda _: None)  # it was a file then
    with pytest.raises(ValueError, match="x is a pipe, not a file"):
        open_file(tmp_path / "x")


def test_a_small_file_that_names_a_large_network_is_refused_before_it_is_built(monkeypatch):
    state = {"head.weight": torch.zeros(2, 2)}
    known = {"sha256": state_sha256(state), "num_outputs": 2, "outputs": "[0, 1]"}
    monkeypatch.setattr(zoo, "build", lambda *_: pytest.fail("built"))
    for name in ("timm/vit_giant_patch14_dinov2", "torchvision/regnet_y_128gf", "zoo/resnet18"):
        with pytest.raises(ValueError, match=f"^T is damaged: {name} has a tensor .*, it has none"):
            rebuild(name, state, known, 2, "T")
    many = {"head.weight": torch.zeros(10_000_000, 1, dtype=torch.uint8)}
    known = {"sha256": state_sha256(many), "num_outputs": 10_000_000, "outputs": "[0, 1]"}
    with pytest.raises(ValueError, match=r"^T is damaged: .* has a tensor conv1.weight of"):
        rebuild("torchvision/resnet50", many, known, 2, "T")


def test_a_large_network_is_built_for_whoever_names_it(monkeypatch):
    monkeypatch.setattr(zoo, "_LARGEST_UNASKED", 1_000_000)
    with trust.only(()):
        with pytest.raises(ValueError, match=r"zoo/convnet3 with 10 outputs is a network of 1.2 MB, which the recipe"):
            zoo.build("zoo/convnet3", 10)
        assert zoo.build("zoo/convnet1", 10)
    with trust.only(["zoo/convnet3"]):
        assert zoo.build("zoo/convnet3", 10)


@pytest.mark.parametrize("name", ["zoo/resnet18", "zoo/convnet3", "torchvision/regnet_x_400mf"])
def test_shapes_are_those_of_the_network(name):
    found = zoo.shapes(name, 7)
    assert found == {key: tuple(tensor.shape) for key, tensor in zoo.build(name, 7).state_dict().items()}


# --- the environment -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["x", "-1", "nan", "1e400", "\u00b2", "9" * 5000, "1.5 s"])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("FASTCONDENSE_PATIENCE", lambda: next(draw(Items("x", Path("nowhere"), [0], bool)))),
        ("FASTCONDENSE_ATTEMPT", launched.attempt),
        ("TORCHELASTIC_RESTART_COUNT", launched.attempt),
        ("LOCAL_WORLD_SIZE", lambda: decoding_threads(Dataset())),
        ("RANK", lambda: distributed.join(torch.device("cpu"))),
        ("WORLD_SIZE", launched.num_launched),
    ],
)
def test_nonsense_in_the_environment_is_named(monkeypatch, name, read, value):
    for more in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(more, "1")
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=rf"^the variable {name} must be .*, got '{re.escape(value)}'$"):
        read()


def test_an_empty_variable_is_none(monkeypatch):
    for name in ("FASTCONDENSE_ATTEMPT", "TORCHELASTIC_RESTART_COUNT", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    assert launched.attempt() == 0 and decoding_threads(Dataset()) >= 1


# --- states of work that goes on -------------------------------------------------------------------------------------


def trained(checkpoint):
    """Two epochs of one step; after the first its state is what would be read."""
    data = [(torch.ones(2, 3), torch.tensor([0, 1]))]
    torch.manual_seed(0)
    optimization = Optimization(epochs=2, batch_size=2, evaluate_every=1)
    return fit(
        torch.nn.Linear(3, 2),
        optimization,
        lambda _: data,
        torch.nn.functional.cross_entropy,
        lambda _: {"top1": 1.0},
        Stream(0, "x"),
        checkpoint,
        lambda _: None,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"net": {}},
        {"net": None},
        {"net": {"weight": torch.ones(2, 4), "bias": torch.ones(2)}},
        {"optimizer": {"state": {0: {"momentum_buffer": torch.ones(7)}}}},
        {"epoch": 0},
        {"epoch": 10**9},
        {"epoch": "1"},
        {"history": [{"top1": "x"}]},
        {"history": []},
        {"seconds": float("nan")},
    ],
    ids=" ".join,
)
def test_a_state_of_another_training_is_named(tmp_path, change):
    path = tmp_path / "checkpoint.pt"
    whole = trained(path)[1]
    state = torch.load(path)
    assert state["epoch"] == 2 and trained(path)[1] == whole
    torch.save(state | change, path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not the state of this training; remove it: [^\n]*$"):
        trained(path)


@pytest.mark.parametrize("change", [{"iteration": "10"}, {"iteration": "x"}, {"iteration": "-1"}, {"total": None}])
def test_a_state_of_another_job_is_named(tmp_path, change):
    unfinished, total = Unfinished(tmp_path, Job(3, 0, 1, 0, 2), "mine"), torch.zeros(2)

    def run():
        return list(remaining(10, unfinished, torch.device("cpu"), dict, lambda read: total.copy_(read["total"])))

    unfinished.write(4, {"total": torch.ones(2)})
    assert run() == [4, 5, 6, 7, 8, 9]
    tensors = {"other": torch.ones(2)} if "total" in change else {"total": torch.ones(2)}
    write_tensors(unfinished.path, tensors, {"identity": "mine", "iteration": change.get("iteration", "4")})
    with pytest.raises(ValueError, match=r"unfinished-00003\.safetensors is not the state of its job; remove it: "):
        run()


# --- results ---------------------------------------------------------------------------------------------------------


def test_results_of_many_values_in_few_bytes_are_refused_together(tmp_path):
    """A file of a million values is read, a second one is too much."""
    (tmp_path / "results").mkdir()
    settings = RESULT["settings"] | {"labels": {"x": [0] * 1_000_000}}
    text = json.dumps(RESULT | {"settings": settings}, separators=(",", ":"))
    (tmp_path / "results" / "a.json").write_text(text)
    assert read_results(tmp_path, Recipe()) == []
    (tmp_path / "results" / "b.json").write_text(text)
    with pytest.raises(ValueError, match=r"b\.json is damaged: with those before, it holds 2,000,\d\d\d values in"):
        read_results(tmp_path, Recipe())
