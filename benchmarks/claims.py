"""Claims of many workers on one shared folder, simulated: what they cost where every call to the disk takes long.

Each worker is a thread that runs the library's own `draw` on real files, but one at a time, on a clock of the
simulation: a call to the file system takes `latency` seconds there, as over a network, and a job takes `job` seconds.
"""

from __future__ import annotations

import heapq
import itertools
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from fastcondense.loaders import reading
from fastcondense.workers import work


class Clock:
    """The time of a simulation, in which one thread runs at a time: the one whose turn comes first."""

    def __init__(self, latency: float):
        self.latency, self.now, self.calls = latency, 0.0, Counter[str]()
        self._turns: list[tuple[float, int, threading.Semaphore]] = []
        self._numbers = itertools.count()

    def sleep(self, seconds: float) -> None:
        """Lets the others run until so many seconds have passed."""
        mine = threading.Semaphore(0)
        heapq.heappush(self._turns, (self.now + seconds, next(self._numbers), mine))
        self.give_turn()
        mine.acquire()

    def give_turn(self) -> None:
        """Wakes whoever comes next."""
        if self._turns:
            self.now, _, first = heapq.heappop(self._turns)
            first.release()

    def call(self, kind: str) -> None:
        """A call to the file system."""
        self.calls[kind] += 1
        self.sleep(self.latency)

    def run(self, functions: list[Callable[[], None]]) -> None:
        """Runs all to their ends. Raises the first error of one."""
        errors: list[BaseException] = []

        def guarded(function: Callable[[], None], begin: threading.Semaphore) -> None:
            begin.acquire()
            try:
                function()
            except BaseException as error:
                errors.append(error)
            self.give_turn()

        threads = []
        for function in functions:
            begin = threading.Semaphore(0)
            heapq.heappush(self._turns, (0.0, next(self._numbers), begin))
            threads.append(threading.Thread(target=guarded, args=(function, begin)))
            threads[-1].start()
        self.give_turn()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


def slow_paths(clock: Clock) -> type[Path]:
    """Paths whose calls to the file system take the clock's latency."""

    def slow(kind: str) -> Callable[..., Any]:
        def call(self: Path, *arguments: Any, **named: Any) -> Any:
            clock.call(kind)
            return getattr(Path, kind)(self, *arguments, **named)

        return call

    kinds = "open stat rename unlink mkdir rmdir is_symlink".split()
    return type("SlowPath", (type(Path()),), {kind: slow(kind) for kind in kinds})


def simulate(workers: int, jobs: int, *, latency: float, job: float, launched: int = 8) -> dict[str, Any]:
    """Draws all jobs by so many workers that begin at once; what that cost on top of the jobs.

    launched: how many each launch has, as far as its workers know.
    """
    clock, made = Clock(latency), Counter[int]()

    def listdir(folder: Path) -> list[str]:
        clock.call("listdir")
        return os.listdir(folder)

    def read_file(path: Path) -> bytes:
        clock.call("read")
        return reading.read_file(Path(os.fspath(path)))

    def is_finished(item: int) -> bool:
        is_there = bool(made[item])
        for kind in ("stat", "open", "read")[: 3 if is_there else 1]:  # a shard's header is looked at
            clock.call(kind)
        return is_there

    with tempfile.TemporaryDirectory() as name:
        folder = slow_paths(clock)(name)
        items = work.Items("jobs", folder, range(jobs), is_finished, str)

        def one() -> None:
            for item, _ in work.draw(items):
                clock.sleep(job)
                Path(name, str(item)).touch()
                made[item] += 1

        thread = {"Event": threading.Event, "Thread": mock.Mock(), "get_native_id": threading.get_native_id}
        parts = {
            "os": SimpleNamespace(listdir=listdir, environ=os.environ, getpid=os.getpid),
            "time": SimpleNamespace(monotonic=lambda: clock.now, sleep=clock.sleep),
            "threading": SimpleNamespace(**thread),
            "read_file": read_file,
            "num_launched": lambda: launched,
        }
        with mock.patch.multiple(work, **parts):
            clock.run([one] * workers)
    ideal = -(-jobs // workers) * job
    return {
        "workers": workers,
        "jobs": jobs,
        "latency_ms": 1e3 * latency,
        "job_seconds": job,
        "calls_a_job": {kind: round(count / jobs, 2) for kind, count in sorted(clock.calls.items())},
        "overhead_percent": round(100 * clock.calls.total() * latency / (jobs * job), 2),
        "seconds": round(clock.now, 2),
        "ideal_seconds": ideal,
        "done_twice": sum(made.values()) - jobs,
    }
