"""Trackers get what the log gets, no tracker changes a recipe, and a missing library is one clear line."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from small import fastcondense, shards

from fastcondense.log import Log
from fastcondense.report.findings import hours_of
from fastcondense.tracking import scalars_of
from fastcondense.workers.cost import cost

KEPT = ("--labels.source", "hard", "--evaluate.baselines", "random_hard", "--train.seeds", "1")


def events(folder: Path, kind: str) -> list[dict]:
    return [
        entry
        for line in (folder / "log.jsonl").read_text().splitlines()
        if (entry := json.loads(line))["event"] == kind
    ]


def test_tensorboard_reads_back_what_the_log_holds(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert fastcondense("run", tmp_path, *KEPT, "--track", "tensorboard") == 0
    read = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    read.Reload()

    jobs = events(tmp_path, "job")
    assert len(jobs) == 4
    for name in ("loss", "cross_entropy", "matching", "images_per_second"):
        found = {event.step: event.value for event in read.Scalars(f"job/{name}")}
        assert found == pytest.approx({entry["index"]: entry[name] for entry in jobs}, rel=1e-6)
    students = [entry for entry in events(tmp_path, "epoch") if entry["what"] == "student on condensed, seed 0"]
    assert [entry["epoch"] for entry in students] == [2, 4]
    for name in ("loss", "lr", "top1", "top5", "images_per_second"):
        found = {event.step: event.value for event in read.Scalars(f"epoch/student-on-condensed--seed-0/{name}")}
        assert found == pytest.approx({entry["epoch"]: entry[name] for entry in students}, rel=1e-6)
    assert {"grid", "losses"} <= set(read.Tags()["images"])
    assert read.Images("grid")[0].encoded_image_string.startswith(b"\x89PNG")

    plain = tmp_path / "plain"
    assert fastcondense("recover", plain, *KEPT) == 0
    assert shards(plain) == shards(tmp_path)
    assert (plain / "recipe.toml").read_text() == (tmp_path / "recipe.toml").read_text()


def test_weights_and_biases_listens_to_tensorboard(tmp_path, monkeypatch):
    """wandb is told to sync before the writer is made, and is ended after the writer has written all."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    seen = []

    class Run:
        def finish(self):
            (file,) = (tmp_path / "tensorboard").iterdir()
            seen.append(file.stat().st_size)

    def init(**options):
        seen.append(options)
        assert not (tmp_path / "tensorboard").exists()
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    assert fastcondense("recover", tmp_path, *KEPT, "--track", "wandb") == 0
    options, size = seen
    assert options["sync_tensorboard"] and options["project"] == "fastcondense" and options["dir"] == str(tmp_path)
    assert options["config"]["ipc"] == 2 and options["name"] == "sre2l/digits-ipc2"
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert file.stat().st_size == size > 1000
    read = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert sorted(event.step for event in read.Scalars("job/loss")) == [0, 1, 2, 3]


@pytest.mark.parametrize(("name", "library"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_library_is_one_line_before_any_work(tmp_path, monkeypatch, capsys, name, library):
    monkeypatch.setitem(sys.modules, library, None)
    assert fastcondense("recover", tmp_path / "run", "--track", name) == 1
    said = capsys.readouterr().err
    assert said == f"fastcondense: --track {name} needs the library {name}: pip install 'fastcondense[logging]'\n"
    assert not (tmp_path / "run" / "teachers").exists()


def test_scalars_are_the_numbers_of_an_event():
    fields = {"what": "student on full, seed 1", "epoch": 3, "top1": 5, "lr": 0.5, "is_last": True, "text": "x"}
    assert scalars_of("epoch", fields) == ("epoch/student-on-full--seed-1", {"top1": 5.0, "lr": 0.5}, 3)
    assert scalars_of("targets", {"seconds": 2.0}) == ("targets", {"seconds": 2.0}, 0)


def test_a_stage_inside_another_counts_for_itself(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("fastcondense.workers.cost.time.monotonic", lambda: now[0])
    monkeypatch.setattr("fastcondense.workers.cost.world_size", lambda: 4)
    told = []
    log = Log(Console(quiet=True))
    log.event = lambda kind, **fields: told.append((kind, fields))
    with pytest.raises(ValueError), cost(log, "cpu", "recover"):
        now[0] += 1000
        with cost(log, "cpu", "squeeze"):
            now[0] += 3600
        now[0] += 800
        raise ValueError
    assert [(fields["stage"], fields["seconds"], fields["workers"]) for _, fields in told] == [
        ("squeeze", 3600, 4),
        ("recover", 1800, 4),
    ]
    assert [fields["hours"] for _, fields in told] == [4.0, 2.0] and told[0][1]["unit"] == "worker-hours"


def test_the_report_adds_up_what_stages_cost(tmp_path):
    costs = [("recover", 1.5), ("train", 0.25), ("recover", 2.0), ("inspect", 9.0)]
    lines = [
        {"time": 1.0, "event": "cost", "stage": stage, "hours": hours, "unit": "GPU-hours"} for stage, hours in costs
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [{"event": "say"}, *lines]))
    assert hours_of(tmp_path / "log.jsonl") == {"recover": (3.5, "GPU-hours"), "train": (0.25, "GPU-hours")}
