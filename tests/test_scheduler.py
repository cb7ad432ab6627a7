"""The simulated fleet and the measured one: numbers that can be worked out by hand."""

import json

import numpy as np
import pytest
import scaling
import scheduler

from fastcondense.recover import unfinished
from fastcondense.rng import Stream
from fastcondense.workers import work

STREAM = Stream(0, "test")


def simulate(workers, seconds, **more):
    return scheduler.simulate(scheduler.Fleet(workers, len(seconds), **more), np.array(seconds, dtype=float), STREAM)


def test_the_largest_jobs_go_first():
    """Two workers: 5 and 4, then 3 to the second and 3 to the first, then 1 to the second."""
    found = simulate(2, [1, 3, 5, 3, 4], failures=False)
    assert found.hours * 3600 == pytest.approx(8) and found.efficiency == pytest.approx(16 / (2 * 8))
    assert found.deaths == 0


def test_equal_jobs_that_do_not_divide_leave_workers_idle():
    found = simulate(8, [10.0] * 12, failures=False)
    assert found.hours * 3600 == pytest.approx(20) and found.efficiency == pytest.approx(12 / 16)


def test_a_death_costs_what_was_not_saved_and_the_patience(monkeypatch):
    """One worker dies after 130 s of a job of 300: two minutes are saved, and another goes on when it is missed."""
    lives = {(0, 0): 130.0}
    monkeypatch.setattr(scheduler, "_life", lambda _, worker, deaths: lives.get((worker, deaths), 1e9))
    found = simulate(2, [300.0, 100.0], restart=1000.0)
    saved = 130 // unfinished._SECONDS_BETWEEN * unfinished._SECONDS_BETWEEN
    ends = found.hours * 3600
    assert found.deaths == 1 and saved == 120
    assert 130 + work._PATIENCE + 300 - saved <= ends < 130 + work._PATIENCE + 300 - saved + 2 * work._POLLS[1]


def test_job_times_are_those_of_a_run(tmp_path):
    events = [{"event": "job", "seconds": s} for s in (2.0, 3.0)] + [{"event": "say"}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    found = scheduler.job_seconds(tmp_path, 1000, STREAM)
    assert set(found) == {2.0, 3.0} and 400 < (found == 2).sum() < 600
    assert scheduler.job_seconds(None, 1000, STREAM).mean() == pytest.approx(600, rel=0.01)
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no finished job"):
        scheduler.job_seconds(tmp_path, 3, STREAM)


def test_images_a_second_of_two_workers(tmp_path):
    for name, begin, end in (("log.jsonl", 100.0, 104.0), ("log-1.jsonl", 101.0, 106.0)):
        events = [{"event": "working", "time": begin}, {"event": "job", "time": end, "images": 12}]
        (tmp_path / name).write_text("".join(json.dumps(event) + "\n" for event in events))
    assert scaling.images_per_second(tmp_path) == pytest.approx(24 / 6)
