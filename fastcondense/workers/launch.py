"""Starts the workers of a stage on this machine, and starts them again when one has died; nothing listens for others.

The workers find each other by files in a temporary folder, and talk over the loopback interface alone.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .interrupt import PARENT, held, listening
from .launched import ATTEMPT, LAUNCHER, NAME, launch_name

_COMMAND = (sys.executable, "-m", "fastcondense.cli")
_MOST_A_CORE = 8
_SECONDS_TO_END = 7.0  # for workers that are told to; they themselves need six at most
_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class Launch:
    """Number of workers that a stage has on this machine, and how often they may die."""

    gpus: int | None = None
    """Workers to start, one a GPU; 0: on CPUs. Without, this process does the work alone."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Workers to start with --gpus 0."""
    restarts: int = 10
    """Number of times that workers are started again after one has died, before the launch fails."""

    @property
    def num_local(self) -> int:
        """Workers on this machine."""
        return self.gpus or self.workers

    def check(self) -> None:
        """Raises ValueError if the workers cannot be started here."""
        import torch  # takes seconds, and options are parsed without it

        if self.gpus and self.gpus > (found := torch.cuda.device_count()):
            raise ValueError(f"--gpus {self.gpus}: this machine has {found}; --gpus 0 --workers N starts CPU workers")
        if (self.gpus or 0) < 0 or self.workers < 1 or self.restarts < 0:
            raise ValueError("--gpus and --restarts cannot be negative, and --workers must be at least 1")
        if self.gpus == 0 and self.workers > _MOST_A_CORE * (cores := os.cpu_count() or 1):
            raise ValueError(f"--workers {self.workers}: {cores} cores are for {_MOST_A_CORE} each at most")


def launch(options: Launch, arguments: list[str], say: Callable[[str], None]) -> int:
    """Runs `fastcondense` with these arguments in every worker; returns the exit status, 0.

    A worker that dies costs what it was doing: all are started again, and go on from what is finished and saved. A
    worker that refuses its input ends them all. Raises ValueError with what it says, or if workers die too often, and
    Interrupted once all have ended.
    """
    with tempfile.TemporaryDirectory(prefix="fastcondense-") as name, listening(grace=_SECONDS_TO_END + 1.5):
        for attempt in range(options.restarts + 1):
            deaths = _run(options, arguments, Path(name), attempt)
            if (refusal := Path(name) / "refusal").exists():
                raise ValueError(refusal.read_text())
            if not deaths:
                return 0
            if attempt < options.restarts:
                say(f"{deaths}; the workers are started again")
    raise ValueError(f"{deaths}; what is finished is kept, and the same command goes on from here")


def refuse(text: str) -> bool:
    """Tells the launcher why this worker refuses its input, unless another has; False if there is no launcher."""
    if LAUNCHER not in os.environ:
        return False
    try:
        with (Path(os.environ[LAUNCHER]) / "refusal").open("x") as file:
            file.write(text)
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


def _run(options: Launch, arguments: list[str], folder: Path, attempt: int) -> str:
    """Runs the workers until all are done or one has died; returns which have died and of what, or nothing."""
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(options.num_local):
            workers.append(
                subprocess.Popen(
                    [*_COMMAND, *arguments],
                    env=_environment(options, folder, attempt, rank),
                    stdin=subprocess.DEVNULL,
                    process_group=0,  # what Ctrl-C of a terminal reaches is this process alone, which tells them
                )
            )
        while None in (statuses := [worker.poll() for worker in workers]) and not any(statuses):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        with held():  # a signal now must not keep it from its end
            _end(workers)
    return ", ".join(
        f"worker {rank} " + (f"died of {signal.Signals(-status).name}" if status < 0 else f"ended with {status}")
        for rank, status in enumerate(statuses)
        if status
    )


def _environment(options: Launch, folder: Path, attempt: int, rank: int) -> dict[str, str]:
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    return os.environ | {
        LAUNCHER: str(folder),
        NAME: launch_name(),
        ATTEMPT: str(attempt),
        PARENT: str(os.getpid()),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(options.num_local),
        "WORLD_SIZE": str(options.num_local),
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }


def _end(workers: list[subprocess.Popen[bytes]]) -> None:
    """Tells those that run to end, and kills those that do not."""
    until = time.monotonic() + _SECONDS_TO_END
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    for worker in workers:
        try:
            worker.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
