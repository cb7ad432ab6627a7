"""Whole runs as the benchmark counts them, and its extrapolation, recomputed by hand."""

import argparse
import json
from dataclasses import replace

import end_to_end
import pytest
from end_to_end import STAGES, Cost, measure_run, run_stage
from extrapolation import Steps, extrapolate, hours, why_not
from session import Session

from fastcondense.files import write_json
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
        data=None, change=["train.seeds=1"], extrapolate=False, recipes=["a/b"], runs=None, of=[]
    )
    end_to_end.run(session, options)
    assert session.finish() == 0 and "a/b: recover failed: no room" in capsys.readouterr().out


def test_hours_are_steps_times_their_number():
    recipe = recipes.load("sre2l/imagenet1k-ipc10")
    assert (recipe.recover.iterations, recipe.train.epochs, recipe.recover.batch_size) == (4000, 300, 100)
    found = hours(recipe, Steps(50.0, 100, 200.0, 64, 224))
    assert found["recover"] == pytest.approx(100 * 4000 * 0.05 / 3600)  # 10000 images are 100 jobs of 100
    assert found["train"] == pytest.approx(300 * 10_000 / 64 * 0.2 / 3600)
    quarter = hours(recipe, Steps(50.0, 100, 200.0, 64, 112))
    assert quarter["recover"] == pytest.approx(4 * found["recover"])
    fifty = hours(recipes.load("sre2l/imagenet1k-ipc50"), Steps(50.0, 100, 200.0, 64, 224))
    assert fifty["recover"] == pytest.approx(5 * found["recover"])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sre2l/imagenet1k", None),
        ("cda/imagenet1k", None),
        ("rded/imagenet1k", "no optimisation"),
        ("edc/imagenet1k", "a pass over real images"),
        ("lpld/imagenet1k", "a pass over real images"),
    ],
)
def test_what_is_not_in_the_steps_is_not_extrapolated(name, reason):
    found = why_not(recipes.load(f"{name}-ipc10"))
    assert (found is None) if reason is None else (reason in found), found
    other = replace(recipes.load("sre2l/imagenet1k-ipc10"), squeeze=recipes.load("sre2l/cifar10-ipc10").squeeze)
    assert "not the student's network alone" in why_not(other)


def test_an_extrapolation_is_marked_and_has_its_inputs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("extrapolation.measured", lambda *_: Steps(50.0, 100, 200.0, 64, 224))
    session = Session("end-to-end", tmp_path / "x.jsonl")
    options = argparse.Namespace(ipc=[10, 200], precision=None)
    extrapolate(session, "sre2l/imagenet1k", options)
    ten, many = lines_of(session)
    assert ten["extrapolated"] and ten["inputs"]["recover_step_ms"] == 50 and ten["inputs"]["jobs"] == 100
    assert many["device_hours"]["recover"] == pytest.approx(20 * ten["device_hours"]["recover"], rel=1e-3)
    assert ten["bytes"] == 1000 * 10 * 3 * 224 * 224
    assert "EXTRAPOLATED, not run" in capsys.readouterr().out
    extrapolate(session, "rded/imagenet1k", options)
    assert "no optimisation" in session.skipped[0][1]
