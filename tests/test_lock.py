"""The lock of a run's folder: shared by launches that do the same, refused to any other, gone with its process."""

import json
import multiprocessing
import os
import socket
import threading
import time

import pytest

from fastcondense.options import take_run
from fastcondense.workers import lock
from fastcondense.workers.lock import is_held, locked

FORK = multiprocessing.get_context("fork")


def holder(folder, launch="another launch", share="", seconds=60):
    """A process that holds the folder."""
    queue = FORK.SimpleQueue()
    process = FORK.Process(target=hold, args=(folder, launch, share, seconds, queue))
    process.start()
    assert queue.get() == "held"
    return process


def hold(folder, launch, share, seconds, queue):
    lock.launch_name = lambda: launch
    with locked(folder, share):
        queue.put("held")
        time.sleep(seconds)


def end(process):
    process.kill()
    process.join()


def test_another_launch_is_refused_and_told_by_whom(tmp_path):
    process = holder(tmp_path / "run")
    assert is_held(tmp_path / "run")
    for share in ("", "the same"):
        with pytest.raises(ValueError, match=f"another launch works on .*run: process {process.pid} on .*; wait for"):
            with locked(tmp_path / "run", share, seconds=0.2):
                pass
    end(process)
    assert not is_held(tmp_path / "run")
    with locked(tmp_path / "run", seconds=5) as is_helper:
        assert json.loads((tmp_path / "run" / ".lock").read_text())["process"] == os.getpid() and not is_helper


def test_workers_of_one_launch_share_it(tmp_path, monkeypatch):
    processes = [holder(tmp_path, "launch 1") for _ in range(2)]
    monkeypatch.setattr(lock, "launch_name", lambda: "launch 1")
    with locked(tmp_path, seconds=0.2) as is_helper:
        assert not is_helper
        end(processes[0])
        monkeypatch.setattr(lock, "launch_name", lambda: "launch 2")
        with pytest.raises(ValueError, match="another launch works on"), locked(tmp_path, seconds=0.2):
            pass
    end(processes[1])


def test_a_launch_that_does_the_same_helps_and_is_helped_when_the_first_has_ended(tmp_path):
    process = holder(tmp_path, share="recipe 1")
    with pytest.raises(ValueError, match="another launch works on"), locked(tmp_path, "recipe 2", seconds=0.2):
        pass
    with locked(tmp_path, "recipe 1") as is_helper:
        assert is_helper
        end(process)
        end(holder(tmp_path, "launch 3", share="recipe 1"))
        with pytest.raises(ValueError, match="another launch works on"), locked(tmp_path, seconds=0.2):
            pass
    with locked(tmp_path, "recipe 2", seconds=0.2) as is_helper:
        assert not is_helper


def test_a_launch_that_is_just_ending_is_waited_for(tmp_path):
    process = holder(tmp_path, seconds=0.8)
    began_at = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - began_at > 0.4
    process.join()
    assert process.exitcode == 0


def test_the_first_sweeps_up_what_killed_processes_left_and_nothing_else(tmp_path):
    folder, host = tmp_path / "condensed", socket.gethostname()
    (folder / ".jobs.claims").mkdir(parents=True)
    claims = {".jobs.claims/00001.0": "elsewhere\nlaunch\n0\n", ".jobs.claims/00003.0": ""}
    for name, text in {f".shard-1.{host}-1-1.tmp": "half", ".jobs.claims/00002.1": f"{host}\nlaunch\n0\n"}.items():
        (folder / name).write_text(text)
    for name, text in {"shard-1": "whole", **claims}.items():
        (folder / name).write_text(text)
    (folder / ".x.1.tmp").mkdir()  # a folder of somebody
    for name in (".jobs.claims/00004.0", ".parts.claims", "deep/.precision.claims"):  # of nobody
        (folder / name).mkdir(parents=True)
    with locked(tmp_path):
        found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
        assert found == {"shard-1", "deep", ".jobs.claims", ".x.1.tmp", *claims}


def test_a_helper_sweeps_nothing(tmp_path):
    process = holder(tmp_path, share="same")
    half = tmp_path / f".shard.{socket.gethostname()}-1-1.tmp"
    half.touch()
    with locked(tmp_path, "same"):
        assert half.exists()
    end(process)


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_a_lock_that_is_something_else_is_neither_written_nor_waited_for(tmp_path, kind):
    target = tmp_path / "target"
    if kind == "link":
        target.write_text("precious")
    if kind == "pipe":
        os.mkfifo(tmp_path / ".lock")
    else:
        (tmp_path / ".lock").symlink_to(target)
    with pytest.raises(ValueError, match=r"\.lock is no plain file; remove it"), locked(tmp_path, seconds=0.2):
        pass
    assert not is_held(tmp_path)
    assert target.exists() == (kind == "link") and (kind != "link" or target.read_text() == "precious")


def test_many_at_once_agree_on_one(tmp_path, monkeypatch):
    """Threads of other launches, all at the same moment: never are two inside."""
    inside, most, mutex = [], [], threading.Lock()
    monkeypatch.setattr(lock, "launch_name", lambda: str(threading.get_ident()))

    def work():
        with locked(tmp_path, seconds=20):
            with mutex:
                inside.append(1)
                most.append(len(inside))
            time.sleep(0.02)
            with mutex:
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6


def test_a_run_that_has_just_begun_is_told_from_no_run(tmp_path):
    process = holder(tmp_path / "run")
    with pytest.raises(ValueError, match="nor a bundle, yet: another launch has just begun there"):
        take_run([str(tmp_path / "run")])
    end(process)
    with pytest.raises(ValueError, match=r"nor a bundle$"):
        take_run([str(tmp_path / "run")])
