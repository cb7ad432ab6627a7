"""`fastcondense status`: from the logs and shards alone, whatever the machines' clocks say."""

import json
import os
import time

import pytest
from memory import begin_peak, peak

from fastcondense.cli import main
from fastcondense.workers.lock import locked
from fastcondense.workers.status import read_status


def write(run, name, *events, age=0.0):
    path = run / name
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"half a li')
    now = time.time()
    os.utime(path, (now - age, now - age))


def job(index, seconds, images=10):
    return {"event": "job", "index": index, "images": images, "seconds": seconds, "time": 1e12}


AT = {"event": "working", "job": 6, "iteration": 30, "iterations": 900, "time": 0.0}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "condensed").mkdir()
    for index in range(5):
        (tmp_path / "condensed" / f"shard-{index:05d}.safetensors").touch()
    plan = {"event": "recover", "jobs": 8, "images": 76, "finished": 1, "time": 5.0}
    write(tmp_path, "log.jsonl", plan, job(1, 20.0), job(2, 20.0), {"event": "working", "job": 5, "time": -3.0})
    write(
        tmp_path,
        "log-1.jsonl",
        plan,
        {"event": "rankings", "classes": 9, "seconds": 30.0, "time": 6.0},
        {"event": "targets", "teachers": 1, "seconds": 4.0, "time": 6.0},
        job(3, 5.0),
        job(4, 5.0, 6),
        {"event": "working", "job": 6, "time": 0.0},
        AT,
        age=9,
    )
    write(tmp_path, "log-2.jsonl", plan, {"event": "working", "job": 7, "time": 0.0}, age=1000)
    return tmp_path


def test_rates_costs_and_time_left(run):
    with locked(run):
        found = read_status(run)
    assert (found.jobs, found.images, found.finished, found.is_held) == (8, 76, 5, True)
    assert found.finished_images == 10 + 10 + 10 + 6 + 10  # the fifth is of another launch: as many as usual, 9.5
    assert found.hours == pytest.approx((50 + 34) / 3600) and found.rate == pytest.approx(20 / 40 + 16 / 10)
    assert found.seconds_left == pytest.approx(30 / 2.1)
    assert [worker.now for worker in found.workers] == [
        "job 5",
        "job 6, iteration 30 of 900",
        "",
    ]  # the last is silent for too long
    assert [worker.name for worker in found.workers] == ["log", "log-1", "log-2"]
    assert 8 < found.workers[1].silent < 30


def test_nobody_at_work_has_no_rate(run):
    found = read_status(run)
    assert not found.is_held and found.rate == 0 and found.seconds_left is None


def test_the_command_says_it_in_a_table(run, capsys):
    assert main(["status", str(run)]) == 0
    said = capsys.readouterr().out
    assert "5 of 8 jobs, 46 of 76 images" in " ".join(said.split()) and "nobody is at work" in " ".join(said.split())
    assert len(list(run.iterdir())) == 4


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 1
    assert "is not the folder of a run: it has no log.jsonl" in capsys.readouterr().err


def test_names_like_those_of_shards_and_pauses_that_cannot_be(run, capsys):
    for name in ("shard-0x.safetensors", "shard-\u0661.safetensors", "shard-000001.safetensors"):
        (run / "condensed" / name).touch()
    assert read_status(run).finished == 5
    for every in ("-1", "nan", "inf"):
        assert main(["status", str(run), f"--every={every}"]) == 1
        assert capsys.readouterr().err == f"fastcondense: --every needs seconds from 0 to 1000000, got {float(every)}\n"


def test_a_long_log_takes_less_memory_than_twice_its_size(run):
    """Of lines with fields that nobody reads, and of jobs that are not there."""
    line = json.dumps(job(10**6, 1.0) | {"more": [[] for _ in range(10_000)]}).replace(" ", "") + "\n"
    with (run / "log-3.jsonl").open("w") as file:
        file.writelines([line] * 200)
        file.writelines(json.dumps(job(10**6 + k, 1.0)) + "\n" for k in range(100_000))
    held = begin_peak()
    found = read_status(run)
    assert found.workers[-1].jobs == 100_200 and found.finished_images == 46
    assert peak() - held < 2 * (run / "log-3.jsonl").stat().st_size
