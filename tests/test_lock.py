"""The lock of a run's folder: shared inside a launch, refused to another, gone with its process."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from fastcondense.workers.lock import locked


def holder(folder, launch="", seconds=60):
    """A process that holds the folder, once it has said so."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom fastcondense.workers.lock import locked\n"
        f"with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep({seconds})"
    )
    environment = os.environ | ({"TORCHELASTIC_RUN_ID": launch} if launch else {})
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"held\n"
    return process


def test_another_launch_is_refused_and_told_by_whom(tmp_path):
    process = holder(tmp_path / "run")
    with pytest.raises(ValueError, match=f"another launch works on .*run: process {process.pid} on .*; wait for it"):
        with locked(tmp_path / "run", seconds=0.2):
            pass
    process.kill()
    process.wait()
    with locked(tmp_path / "run", seconds=5):
        assert json.loads((tmp_path / "run" / ".lock").read_text())["process"] == os.getpid()


def test_workers_of_one_launch_share_it(tmp_path, monkeypatch):
    processes = [holder(tmp_path, "launch 1") for _ in range(2)]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "launch 1")
    with locked(tmp_path, seconds=0.2):
        processes[0].kill()
        processes[0].wait()
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "launch 2")
        with pytest.raises(ValueError, match="another launch works on"), locked(tmp_path, seconds=0.2):
            pass
    processes[1].kill()
    processes[1].wait()


def test_a_launch_that_is_just_ending_is_waited_for(tmp_path):
    process = holder(tmp_path, seconds=1)
    began_at = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - began_at > 0.5
    assert process.wait() == 0


def test_the_first_sweeps_up_what_killed_writers_left(tmp_path):
    left, kept = tmp_path / "condensed" / ".shard-00001.safetensors.host-1-1.tmp", tmp_path / "condensed" / "shard"
    left.parent.mkdir()
    left.write_bytes(b"half")
    kept.write_bytes(b"whole")
    with locked(tmp_path):
        assert not left.exists() and kept.exists()


def test_many_at_once_agree_on_one(tmp_path, monkeypatch):
    """Threads of other launches, all at the same moment: never are two inside."""
    inside, most, lock = [], [], threading.Lock()
    monkeypatch.setattr("fastcondense.workers.lock._launch", lambda: {"launch": str(threading.get_ident())})

    def work():
        with locked(tmp_path, seconds=20):
            with lock:
                inside.append(1)
                most.append(len(inside))
            time.sleep(0.02)
            with lock:
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6
