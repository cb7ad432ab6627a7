"""Launches of several workers on a small run, and what came of them.

`launched` forks them from a server that has imported the library once, which takes each process three seconds;
`started` starts them as a user does.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
from small import FLAGS, fastcondense

from fastcondense import cli
from fastcondense.networks import fit
from fastcondense.workers import launch

ROOT = Path(__file__).parents[1]
MORE = ("--recover.slots-per-job", "1", "--recover.statistics", "bn", "conv", "--ipc", "4")  # targets are collected too
PATIENCE = {"OMP_NUM_THREADS": "1", "FASTCONDENSE_PATIENCE": "3"}
SERVER, FORK = multiprocessing.get_context("forkserver"), multiprocessing.get_context("fork")
SERVER.set_forkserver_preload(["fastcondense.session", "fastcondense.workers.distributed", "matplotlib.pyplot"])


def run_alone(folder):
    """A run of one process, and the flags of others with the same teacher."""
    assert fastcondense("squeeze", folder / "teacher") == 0
    (teacher,) = (folder / "teacher").rglob("weights.safetensors")
    more = [*MORE, "--squeeze.weights", str(teacher)]
    assert fastcondense("recover", folder / "run", *more) == 0
    return folder / "run", more


class Launched:
    """A launch, in a process group of its own: what subprocess.Popen says of it."""

    def __init__(self, arguments, is_saved_often):
        number, self.said = tempfile.mkstemp()
        os.close(number)
        self.process = SERVER.Process(target=_carry_out, args=(arguments, self.said, is_saved_often))
        self.process.start()
        self.pid, self.kill, self.terminate = self.process.pid, self.process.kill, self.process.terminate

    def poll(self):
        return self.process.exitcode

    @property
    def returncode(self):
        return self.process.exitcode

    def communicate(self, timeout=None):
        self.process.join(timeout)
        path = Path(self.said)
        text = path.read_text()
        path.unlink()
        return text, None


def _carry_out(arguments, said, is_saved_often):
    os.setsid()
    if is_saved_often:
        fit._SECONDS_BETWEEN_CHECKPOINTS = 0
    os.environ |= PATIENCE
    for number in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    launch.subprocess = SimpleNamespace(
        Popen=Worker, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
    )
    _end(arguments)


def _end(arguments):
    status = cli.main(arguments)
    sys.stdout.flush()
    os._exit(status)


class Worker(FORK.Process):
    """What subprocess.Popen starts for a launcher."""

    def __init__(self, command, env, stdin, process_group):
        assert command[: len(launch._COMMAND)] == [*launch._COMMAND] and stdin == subprocess.DEVNULL
        super().__init__(target=self.work, args=(command[len(launch._COMMAND) :], env, process_group))
        self.start()

    @staticmethod
    def work(arguments, environment, group):
        signal.set_wakeup_fd(-1)  # which is the launcher's
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, group)
        os.environ |= environment
        _end(arguments)

    def poll(self):
        return self.exitcode

    def wait(self, timeout=None):
        self.join(timeout)
        if self.exitcode is None:
            raise subprocess.TimeoutExpired("a worker", timeout)


def command(stage, out, *more):
    return [sys.executable, "-m", "fastcondense.cli", stage, *FLAGS, "--out", str(out), *more]


def started(stage, out, *more):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command(stage, out, *more), cwd=ROOT, env=os.environ | PATIENCE, **pipes)


def launched(stage, out, *more, is_saved_often=False):
    """is_saved_often: a training is saved after every epoch."""
    return Launched(command(stage, out, *more)[3:], is_saved_often)


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


def workers_of(launcher, count):
    """Processes of the workers of a launcher, as soon as they are there."""
    parent = psutil.Process(launcher.pid)
    wait_for(lambda: len(parent.children()) >= count)
    return [worker.pid for worker in parent.children()]


def wait_for(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")
