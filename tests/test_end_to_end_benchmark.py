"""Whole runs as the benchmark counts them, and its extrapolation, recomputed by hand."""

import argparse
import json
from types import SimpleNamespace

import end_to_end
import pytest
from end_to_end import STAGES, Cost, measure_run, run_stage
from session import Session

from fastcondense.files import write_json
from fastcondense.plan.plan import StageTime
from fastcondense.recipe import recipe as recipes

SMALL = "--squeeze.epochs 1 --squeeze.gate-images 0 --squeeze.teachers zoo/convnet1 --dataset.classes 0 1".split()


def lines_of(session):
    return [json.loads(line) for line in session.out.read_text().splitlines()]


def test_a_stage_is_timed_in_its_own_process(tmp_path):
    (tmp_path / "run").mkdir()
    cost = run_stage("squeeze", tmp_path / "run", ["--recipe", "rded/digits-ipc1", *SMALL])
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert cost.written_bytes == sum(path.stat().st_size for path in files) > 1000
    assert 0.5 < cost.cpu_s and 0.5 < cost.wall_s and cost.peak_memory_bytes > 1e8
    with pytest.raises(ValueError, match=r"squeeze failed: fastcondense: .*no recipe"):
        run_stage("squeeze", tmp_path / "run", ["--recipe", "rded/digitz"])


def test_the_lines_of_a_run(tmp_path, monkeypatch):
    made = recipes.load("sre2l/digits-ipc10")
    out = tmp_path / "run"

    def fake(stage, folder, arguments):
        assert arguments[:2] == ["--recipe", "sre2l/digits-ipc10"]
        if stage == "evaluate":
            (folder / "recipe.toml").write_text(made.to_toml())
            score = {"mean": 90.0, "std": 0.0}
            result = {"recipe": made.name, "recipe_sha256": made.sha256(), "dataset": "digits", "method": "sre2l"}
            result |= {"ipc": 10, "student": "x", "epochs": 2, "seeds": 1, "test_images": 5, "baselines": {}}
            result |= {"top1_last": score, "top1_best": score, "bytes": {"images": 19200, "labels": 0, "teachers": 8}}
            result |= {"seconds": {"squeeze": 1.0, "recover": 2.0, "train": 3.0, "evaluate": 4.0}}
            write_json(folder / "result.json", result)
        return Cost(7.0, 36.0, 1000, 10)

    monkeypatch.setattr(end_to_end, "run_stage", fake)
    session = Session("end-to-end", tmp_path / "x.jsonl")
    measure_run(session, "sre2l/digits-ipc10", ["--train.seeds", "1"], out)
    lines = {line["stage"]: line for line in lines_of(session)}
    assert set(lines) == {*STAGES, "all"}
    assert [lines[stage]["seconds"] for stage in STAGES] == [1.0, 2.0, 7.0, 3.0, 4.0]  # relabel counts none itself
    assert lines["recover"]["bytes"] == 10 and lines["all"]["bytes"] == 19208
    if end_to_end.DEVICE.type == "cpu":
        assert lines["recover"]["device_hours"] == 0.01
    assert lines["all"]["changed"] == ["--train.seeds"] and lines["all"]["top1_last"]["mean"] == 90.0


def test_a_run_that_fails_is_skipped_with_its_reason(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("recover failed: no room")

    monkeypatch.setattr(end_to_end, "run_stage", fail)
    session = Session("end-to-end", tmp_path / "x.jsonl")
    options = argparse.Namespace(
        data=None, change=["train.seeds=1"], extrapolate=False, recipes=["a/b"], runs=None, of=[], ipc=[]
    )
    end_to_end.run(session, options)
    assert session.finish() == 0 and "a/b: recover failed: no room" in capsys.readouterr().out


def test_an_extrapolation_is_marked_and_is_the_plans_of_one_student(tmp_path, monkeypatch, capsys):
    asked = []

    def plan(recipe, size, num_workers, *_):
        asked.append((recipe.train.seeds, recipe.evaluate.baselines, size.num_classes, num_workers))
        times = [StageTime(name, seconds, seconds, "steps") for name, seconds in (("recover", 7200), ("train", 900))]
        return SimpleNamespace(times=times, disk={"images": 30})

    monkeypatch.setattr(end_to_end, "Plan", plan)
    session = Session("end-to-end", tmp_path / "x.jsonl")
    end_to_end.extrapolate(session, "sre2l/imagenet1k", 10, 1.0)
    (line,) = lines_of(session)
    assert asked == [(1, (), 1000, 1)] and line["extrapolated"] and line["bytes"] == 30
    assert line["device_hours"] == {"recover": 2.0, "train": 0.25} and line["known_from"]["train"] == "steps"
    assert "EXTRAPOLATED, not run" in capsys.readouterr().out
