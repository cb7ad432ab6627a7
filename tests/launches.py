"""Launches of several workers on a small run, as a user starts them, and what came of them."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from small import FLAGS, fastcondense

ROOT = Path(__file__).parents[1]
MORE = ("--recover.slots-per-job", "1", "--recover.statistics", "bn", "conv", "--ipc", "4")  # targets are collected too


def run_alone(folder):
    """A run of one process, and the flags of others with the same teacher."""
    assert fastcondense("squeeze", folder / "teacher") == 0
    (teacher,) = (folder / "teacher").rglob("weights.safetensors")
    more = [*MORE, "--squeeze.weights", str(teacher)]
    assert fastcondense("recover", folder / "run", *more) == 0
    return folder / "run", more


def command(stage, out, *more):
    return [sys.executable, "-m", "fastcondense.cli", stage, *FLAGS, "--out", str(out), *more]


def launched(stage, out, *more, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FASTCONDENSE_PATIENCE": "3"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command(stage, out, *more), cwd=ROOT, env=environment, **pipes, **options)


def ended(process, status=0):
    said, _ = process.communicate(timeout=600)
    assert process.returncode == status, said
    return said


def listened_at(launcher):
    """Addresses at which a launcher or any process of it has listened until its end, as the system says."""
    found, parent = set(), psutil.Process(launcher.pid)
    while launcher.poll() is None:
        with contextlib.suppress(psutil.Error):
            for process in (parent, *parent.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    sockets = process.net_connections("inet")
                    found |= {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
        time.sleep(0.05)
    return found


def workers_of(launcher):
    """Processes of the workers of a launcher, as soon as they are there."""
    for _ in range(300):
        found = subprocess.run(
            ["pgrep", "-P", str(launcher.pid), "-f", "fastcondense.cli"], capture_output=True, text=True
        )
        if found.stdout:
            return [int(line) for line in found.stdout.split()]
        time.sleep(0.1)
    raise AssertionError("no workers")


def wait_for(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")
