"""The size of jobs that fits: chosen once and kept, refused before any work, and no part of what decides images."""

import json
from dataclasses import replace

import pytest
import torch
from small import fastcondense, shards

from fastcondense import stages
from fastcondense.data.jobs import jobs, with_batch_size
from fastcondense.plan import job_size
from fastcondense.plan.job_size import check_fits, largest_batch, recover_footprint
from fastcondense.plan.memory import Footprint, LiveTensors, free_bytes
from fastcondense.recipe.recipe import load

CPU = torch.device("cpu")
LINE = Footprint(1000.0, 10.0)


def test_the_largest_batch_is_shared_evenly():
    recipe = load("sre2l/imagenet1k-ipc50")
    assert largest_batch(recipe, 1000, LINE, 1000 + 10 * 999) == 500  # two groups, not one of 999 and one of 1
    assert largest_batch(recipe, 1000, LINE, 1000 + 10 * 99) == 91  # eleven groups
    assert largest_batch(recipe, 1000, LINE, 10**9) == 1000
    grouped = replace(recipe, recover=replace(recipe.recover, slots_per_job=8))
    assert largest_batch(grouped, 1000, LINE, 1000 + 10 * 99) == 96  # twelve classes of eight images
    found = jobs(with_batch_size(grouped, 96), 1000)
    assert max(job.num_images for job in found) == 96 and {job.num_slots for job in found} == {8, 2}


def test_what_cannot_fit_is_refused_with_what_would():
    recipe = load("sre2l/imagenet1k-ipc50")
    check_fits(recipe, 1000, LINE, 2000)
    with pytest.raises(ValueError, match=r"a job of 100 images of 224 pixels needs .* that would has 99 images: --rec"):
        check_fits(recipe, 1000, LINE, 1999)
    with pytest.raises(ValueError, match="not even one image does"):
        largest_batch(recipe, 1000, LINE, 900)
    by_classes = replace(recipe, recover=replace(recipe.recover, classes_per_job=200))
    with pytest.raises(ValueError, match=r"99 images: --recover.batch-size 99 and --recover.classes-per-job 0"):
        check_fits(by_classes, 1000, LINE, 1999)


def test_the_footprint_is_the_memory_of_larger_jobs():
    """The line through two and four images, at ten: the bytes that such a job's step really has at once."""
    from fastcondense.plan import stand_ins

    recipe = load("gvbsm/digits")
    recipe = replace(recipe, recover=replace(recipe.recover, iterations=20))
    line, first = recover_footprint(recipe, 10, CPU), jobs(recipe, 10)[0]
    with LiveTensors() as count:
        teachers = [stand_ins.teacher(recipe, name, 10, CPU) for name in stand_ins.matched(recipe)]
        step = stand_ins.recover_step(recipe, stand_ins.smaller(first, 10, 10), teachers, CPU)
        count.restart()
        for which in range(len(teachers)):
            step.step.zero_()
            step(((which, 1.0),))
        assert line.at(10) == pytest.approx(count.peak, rel=0.02)


def refuse(*_arguments):
    raise AssertionError("this must not be asked again")


def test_zero_is_settled_once_and_stays(tmp_path, monkeypatch):
    """The machine has room for six images at first, and for all later: jobs stay as they were, and so do the images."""
    out, same = tmp_path / "auto", tmp_path / "same"
    monkeypatch.setattr(job_size, "recover_footprint", lambda *_: LINE)
    monkeypatch.setattr(job_size, "usable_bytes", lambda _: 1060)
    assert fastcondense("recover", out, "--recover.batch-size", "0") == 0
    manifest = json.loads((out / "condensed" / "manifest.json").read_text())
    assert manifest["recipe"]["recover"]["batch_size"] == 5 and load(str(out / "recipe.toml")).recover.batch_size == 5
    assert fastcondense("recover", same, "--recover.batch-size", "5") == 0
    assert shards(out) == shards(same) and len(shards(out)) == 4

    monkeypatch.setattr(job_size, "usable_bytes", lambda _: 10**9)
    (out / "condensed" / "shard-00001.safetensors").unlink()
    assert fastcondense("recover", out, "--recover.batch-size", "0") == 0
    assert shards(out) == shards(same)
    monkeypatch.setattr(job_size, "recover_footprint", refuse)
    assert fastcondense("recover", out, "--recover.batch-size", "0") == 0  # finished: nothing is measured


def test_a_size_that_was_chosen_before_the_first_job_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(job_size, "recover_footprint", lambda *_: LINE)
    monkeypatch.setattr(job_size, "usable_bytes", lambda _: 1030)
    assert fastcondense("recover", tmp_path, "--recover.batch-size", "0", "--squeeze.gate-images", "10000") == 1
    assert fastcondense("recover", tmp_path, "--recover.batch-size", "0", "--recover.iterations", "0") == 1
    monkeypatch.setattr(stages, "squeeze", refuse)
    with pytest.raises(AssertionError):
        fastcondense("recover", tmp_path, "--recover.batch-size", "0")
    assert load(str(tmp_path / "recipe.toml")).recover.batch_size == 3  # four groups of ten classes
    monkeypatch.undo()
    assert fastcondense("recover", tmp_path, "--recover.batch-size", "0") == 0
    assert len(shards(tmp_path)) == 8


def test_recover_refuses_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job_size, "usable_bytes", lambda _: 300_000)
    assert fastcondense("recover", tmp_path, "--recover.batch-size", "10") == 1
    assert "a job of 10 images of 8 pixels needs " in capsys.readouterr().err
    assert not (tmp_path / "teachers").exists() and not (tmp_path / "condensed").exists()


def test_stages_without_a_size_say_so(tmp_path, capsys):
    assert fastcondense("inspect", tmp_path, "--recover.batch-size", "0") == 1
    assert "run recover first" in capsys.readouterr().err
    assert fastcondense("recover", tmp_path, "--recover.batch-size", "0", "--recover.iterations", "0") == 1
    assert "needs recover.objective statistics" in capsys.readouterr().err


def test_free_memory_is_some_of_the_machines():
    total = next(int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith("MemTotal"))
    assert 0 < free_bytes(CPU) <= 1024 * total
