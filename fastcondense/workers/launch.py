"""Starts the workers of a stage with PyTorch's elastic launcher, on this machine or as its part of a larger launch."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters, registry
from torch.distributed.elastic.rendezvous.api import RendezvousHandler

from . import notes
from .interrupt import PARENT

TRY_AGAIN = 75
"""Exit status (EX_TEMPFAIL of sysexits.h) of what is cut off from the others: nothing is wrong with its input."""
_GET_ADDRESS = 0x8915  # SIOCGIFADDR of netdevice(7)
_NODES_SECONDS = 600  # for the other machines of a launch to come
_WATCH_SECONDS = 2.0
_REACH_SECONDS = 10.0  # for an answer of the first machine
_EXIT_SECONDS = 10.0  # for the other machines to end


@dataclass(frozen=True)
class Launch:
    """How many workers a stage has, and where."""

    gpus: int | None = None
    """Workers to start, one a GPU; 0: on CPUs. Without, this process does the work alone."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Workers to start with --gpus 0."""
    nodes: str = "1"
    """Machines, each of which starts the same command: their number, or least:most."""
    rendezvous: str = ""
    """HOST:PORT where the machines meet, an address of the first one."""
    address: str = ""
    """Of this machine, as the others reach it; by default that of its name."""
    restarts: int = 10
    """How often workers are started again after one has died, before the launch fails."""

    @property
    def num_local(self) -> int:
        """Workers on this machine."""
        return self.gpus or self.workers

    def num_nodes(self) -> tuple[int, int]:
        """Least and most machines. Raises ValueError for anything else."""
        least, _, most = self.nodes.partition(":")
        if not least.isdigit() or not (most or least).isdigit() or not 1 <= int(least) <= int(most or least):
            raise ValueError(f"--nodes needs a number of machines, or least:most, got {self.nodes!r}")
        return int(least), int(most or least)

    def check(self) -> None:
        """Raises ValueError if the workers cannot be started here."""
        if self.gpus and self.gpus > (found := torch.cuda.device_count()):
            raise ValueError(f"--gpus {self.gpus}: this machine has {found}; --gpus 0 --workers N starts CPU workers")
        if (self.gpus or 0) < 0 or self.workers < 1 or self.restarts < 0:
            raise ValueError("--gpus and --restarts cannot be negative, and --workers must be at least 1")
        if self.num_nodes()[1] > 1 and not self.rendezvous:
            raise ValueError("--nodes needs --rendezvous HOST:PORT, an address of the first machine")
        if self.rendezvous and not self.rendezvous.rpartition(":")[2].isdigit():
            raise ValueError(f"--rendezvous needs HOST:PORT, got {self.rendezvous!r}")


def launch(options: Launch, arguments: list[str]) -> int:
    """Runs `fastcondense` with these arguments in every worker; returns the exit status.

    A worker that dies costs what it was doing: all are started again, and go on from what is finished and saved. A
    worker that refuses its input ends them all. Raises ValueError with what it says, or if the machines do not meet.
    """
    logging.disable(logging.CRITICAL)  # what the elastic launcher would say is said below
    with tempfile.TemporaryDirectory(prefix="fastcondense-") as name:
        folder = Path(name)
        os.environ |= {notes.FOLDER: name, PARENT: str(os.getpid()), "TORCH_CPP_LOG_LEVEL": "ERROR"}
        if options.rendezvous:  # with one store for all rounds, machines that come later would not find the first one
            os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        if options.address:
            interface = _interface(options.address)
            os.environ |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
        try:
            handler = _rendezvous(options)
            if options.rendezvous:
                threading.Thread(target=_watch, args=(options, folder), daemon=True).start()
            result = _Agent(_specification(options, arguments, handler), folder).run()
        except SignalException as error:
            sys.stderr.write("fastcondense: interrupted; the same command goes on from here\n")
            return 128 + int(error.sigval)
        except (RendezvousError, TimeoutError, ConnectionError) as error:
            raise ValueError(f"the machines did not meet at {options.rendezvous or 'localhost'}: {error}") from None
        handler.shutdown()
        if (refusal := notes.read_refusal(folder)) is not None:
            raise ValueError(refusal)
        if result is None or not result.is_failed():
            return 0
        raise ValueError(f"{_deaths(result)}; what is finished is kept, and the same command goes on from here")


def _watch(options: Launch, folder: Path) -> None:
    """Ends the process once all its workers are cut off and the first machine is out of reach.

    The elastic launcher itself would wait for an answer of that machine for a quarter of an hour.
    """
    while notes.count_cut(folder) < options.num_local or _can_reach(options.rendezvous):
        time.sleep(_WATCH_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(TRY_AGAIN)


class _Agent(LocalElasticAgent):
    """Starts workers again after a death, but not after a refusal."""

    def __init__(self, specification: WorkerSpec, folder: Path):
        super().__init__(
            specification, DefaultLogsSpecs(log_dir=None), start_method="spawn", exit_barrier_timeout=_EXIT_SECONDS
        )
        self.folder = folder

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
            if notes.read_refusal(self.folder) is not None:
                self._remaining_restarts = 0
            if self._remaining_restarts:
                sys.stderr.write(f"fastcondense: {_deaths(result)}; the workers are started again\n")
        return result


def _rendezvous(options: Launch) -> RendezvousHandler:
    least, most = options.num_nodes()
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=options.rendezvous or "localhost:0",
        run_id=options.rendezvous or f"fastcondense-{os.getpid()}",
        min_nodes=least,
        max_nodes=most,
        local_addr=options.address or (None if options.rendezvous else "localhost"),
        is_host=not options.rendezvous or _is_here(options.rendezvous.rpartition(":")[0]),
        join_timeout=_NODES_SECONDS,
    )
    return registry.get_rendezvous_handler(parameters)


def _specification(options: Launch, arguments: list[str], handler: RendezvousHandler) -> WorkerSpec:
    return WorkerSpec(
        role="worker",
        local_world_size=options.num_local,
        entrypoint=sys.executable,
        args=("-m", "fastcondense.cli", *arguments),
        rdzv_handler=handler,
        max_restarts=options.restarts,
        monitor_interval=0.2,
        local_addr=options.address or (None if options.rendezvous else "localhost"),
    )


def _can_reach(rendezvous: str) -> bool:
    """Whether the first machine can still be connected to."""
    host, _, port = rendezvous.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_REACH_SECONDS).close()
    except OSError:
        return False
    return True


def _is_here(host: str) -> bool:
    """Whether an address is one of this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def _interface(address: str) -> str:
    """The network interface that has an IPv4 address. Raises ValueError if none of this machine has."""
    wanted = socket.inet_aton(socket.gethostbyname(address))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # one without an address
                answer = fcntl.ioctl(probe, _GET_ADDRESS, struct.pack("256s", name.encode()))
                if answer[20:24] == wanted:
                    return name
    raise ValueError(f"--address {address} is not an address of this machine")


def _deaths(result: RunResult) -> str:
    """Which workers died, and of what."""
    texts = []
    for rank, failure in sorted(result.failures.items()):
        code = failure.exitcode
        texts.append(
            f"worker {rank} " + (f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}")
        )
    return ", ".join(texts) or "the workers failed"
