"""Launches that are killed, preempted, or lose their launcher: the images are those of an undisturbed one."""

import os
import signal
import time
from pathlib import Path

import pytest
from launches import ended, launched, run_alone, wait_for, workers_of
from small import fastcondense, shards


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run_alone(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def long_jobs(alone, tmp_path_factory):
    """A run of two jobs that take seconds each, and its flags."""
    out, more = tmp_path_factory.mktemp("long") / "run", [*alone[1], "--recover.iterations", "700", "--ipc", "1"]
    assert fastcondense("recover", out, *more) == 0
    return out, more


def test_a_worker_that_is_killed_loses_no_image(alone, tmp_path):
    _, more = alone
    more = [*more, "--recover.iterations", "60"]
    assert fastcondense("recover", tmp_path / "whole", *more) == 0
    process = launched("recover", tmp_path / "run", *more, "--gpus", "0", "--workers", "2")
    wait_for(lambda: any((tmp_path / "run" / "condensed").glob("shard-*")))
    os.kill(workers_of(process, 2)[1], signal.SIGKILL)
    said = ended(process)
    assert "died of SIGKILL; the workers are started again" in said
    assert shards(tmp_path / "run") == shards(tmp_path / "whole")


def test_preemption_and_ctrl_c_save_jobs_within_ten_seconds_and_another_number_of_workers_goes_on(long_jobs, tmp_path):
    run, more = long_jobs
    folder = tmp_path / "run" / "condensed"
    logs = [tmp_path / "run" / name for name in ("log.jsonl", "log-1.jsonl")]
    for before, number in enumerate((signal.SIGTERM, signal.SIGINT)):
        process = launched("recover", tmp_path / "run", *more, "--gpus", "0", "--workers", "2")
        wait_for(lambda least=before: all(log.exists() and log.read_text().count('"working"') > least for log in logs))
        time.sleep(0.3)  # both are in the middle of their job
        began_at = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # a terminal's Ctrl-C reaches all of them
        else:
            process.terminate()
        said = ended(process, 128 + number)
        assert time.monotonic() - began_at < 10 and said.count("interrupted") == 1 and "Traceback" not in said
        assert len(list(folder.glob("unfinished-*"))) == 2 - len(list(folder.glob("shard-*"))) > 0
    assert fastcondense("recover", tmp_path / "run", *more) == 0
    assert shards(tmp_path / "run") == shards(run)
    assert not list(folder.glob("unfinished-*"))


def test_workers_of_a_killed_launcher_end_and_the_next_launch_takes_over(alone, tmp_path):
    run, more = alone
    process = launched("recover", tmp_path / "run", *more, "--gpus", "0", "--workers", "2")
    found = workers_of(process, 2)
    wait_for(lambda: (tmp_path / "run" / ".lock").exists())
    process.kill()
    process.communicate()
    ended(launched("recover", tmp_path / "run", *more, "--gpus", "0", "--workers", "1"))
    assert shards(tmp_path / "run") == shards(run)
    for worker in found:
        wait_for(lambda worker=worker: not Path(f"/proc/{worker}").exists())
