"""`fastcondense status RUN`, from any shell that sees the folder: what the workers of a run have done, and are doing.

Read from their logs and the shards alone. Times of different machines are never compared: how long a worker has been
silent is the age of its log by the clock of the file system, and rates are images over a job's own seconds.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from ..loaders.reading import check_folder
from ..log import Log, read_events
from ..words import seconds_in_words
from .lock import is_held

_SILENT = 120.0  # seconds without a line in its log, after which a worker that ended no job counts for no rate
_RECENT = 5  # jobs of a worker that its rate is taken from


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Options of `fastcondense status`: which run, and how often."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run."""
    every: float = 0.0
    """Seconds after which it is said again, until the images are finished; 0: once."""


@dataclass(frozen=True)
class Worker:
    """One worker, as its log tells."""

    name: str
    jobs: int
    """Jobs that it has finished."""
    seconds: float
    """Seconds that these took, and what they needed: rankings of crops, target statistics."""
    rate: float
    """Images a second in its last jobs."""
    now: str
    """What it is doing."""
    silent: float
    """Seconds since its last line."""


@dataclass(frozen=True)
class Status:
    """The progress of a whole run."""

    workers: list[Worker]
    jobs: int
    """Jobs of the run; 0 before recover has begun."""
    images: int
    """Images of these jobs."""
    finished: int
    """Jobs whose shards are there."""
    finished_images: int
    is_held: bool
    """Whether a launch holds the folder."""

    @property
    def is_finished(self) -> bool:
        """Whether all images are there."""
        return 0 < self.jobs == self.finished

    @property
    def hours(self) -> float:
        """Hours of all workers in all jobs and what these needed: GPU-hours where they are GPUs."""
        return sum(worker.seconds for worker in self.workers) / 3600

    @property
    def rate(self) -> float:
        """Images a second of the workers that are at work."""
        return sum(worker.rate for worker in self.workers if worker.now) if self.is_held else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the images are finished; None while no rate is known."""
        return (self.images - self.finished_images) / self.rate if self.rate else None


def status(options: StatusOptions, _log: Log) -> Iterator[Table]:
    """Yields the status of a run as a table, once or again and again. Raises ValueError if the folder has no run."""
    if not 0 <= options.every <= 1e6:
        raise ValueError(f"--every needs seconds from 0 to 1000000, got {options.every}")
    while True:
        found = read_status(options.run)
        yield _table(found)
        if not options.every or found.is_finished:
            return
        time.sleep(options.every)


def read_status(run: Path) -> Status:
    """The status that a run's folder tells. Raises ValueError if it has no log."""
    check_folder(run)
    paths = sorted(run.glob("log*.jsonl"), key=lambda path: (len(path.name), path.name))
    if not paths:
        raise ValueError(f"{run} is not the folder of a run: it has no log.jsonl")
    folder = run / "condensed"
    names = (re.fullmatch(r"shard-([0-9]{5,9})\.safetensors", path.name) for path in folder.glob("shard-*"))
    sizes: dict[int, int | None] = {int(name[1]): None for name in names if name}  # images of finished jobs, once told
    logs = {path: _read(path, sizes) for path in paths}
    newest = max(path.stat().st_mtime for path in paths)
    now = max(newest, _clock(run))
    jobs, images = max((told.plan for told in logs.values()), key=lambda plan: plan[1])
    usual = images / jobs if jobs else 0
    workers = [_worker(path, told, now - path.stat().st_mtime) for path, told in logs.items()]
    finished = round(sum(usual if size is None else size for size in sizes.values()))
    return Status(workers, jobs, images, len(sizes), finished, is_held(run))


@dataclass
class _Told:
    """What a log tells of a worker: what takes no more memory for a longer log."""

    plan: tuple[int, int] = (0, 0)
    """Jobs and images of the run, of the most images."""
    jobs: int = 0
    seconds: float = 0.0
    recent: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_RECENT))
    last: dict[str, Any] | None = None


def _read(path: Path, sizes: dict[int, int | None]) -> _Told:
    """Reads a log, and puts the images of the jobs that it tells of where `sizes` has the job."""
    told = _Told()
    for event in read_events(path, ("recover", "rankings", "targets", "working", "job")):
        if event["event"] == "recover":
            told.plan = max(told.plan, (event["jobs"], event["images"]), key=lambda plan: plan[1])
            continue
        if event["event"] in ("rankings", "targets"):
            told.seconds += event["seconds"]
            continue
        told.last = event
        if event["event"] == "job":
            told.jobs += 1
            told.seconds += event["seconds"]
            told.recent.append(event)
            if event["index"] in sizes:
                sizes[event["index"]] = event["images"]
    return told


def _worker(path: Path, told: _Told, silent: float) -> Worker:
    recent, last = told.recent, told.last
    seconds = sum(event["seconds"] for event in recent)
    longest = max((event["seconds"] for event in recent), default=0.0)
    is_working = last is not None and last["event"] == "working" and silent < max(_SILENT, 3 * longest)
    rate = sum(event["images"] for event in recent) / seconds if seconds else 0.0
    doing = _doing(last) if is_working and last is not None else ""
    return Worker(path.stem, told.jobs, told.seconds, rate, doing, silent)


def _doing(event: dict[str, Any]) -> str:
    """A job, and how far it is once that was told."""
    done, count = event.get("iteration"), event.get("iterations")
    far = f", iteration {done} of {count}" if isinstance(done, int) and isinstance(count, int) else ""
    return f"job {event['job']}{far}"


def _clock(run: Path) -> float:
    """The time by the clock that dates the run's files."""
    try:
        with tempfile.TemporaryFile(dir=run) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:  # it is somebody else's, or full: the newest log has to do
        return 0.0


def _table(found: Status) -> Table:
    left = found.seconds_left
    title = (
        f"{found.finished} of {found.jobs} jobs, {found.finished_images} of {found.images} images, "
        f"{found.rate:.3g} images/s, {seconds_in_words(3600 * found.hours)} of work; "
        f"{'finished' if found.is_finished else f'{seconds_in_words(left)} left' if left else 'no rate yet'}; "
        f"{'a launch is at work' if found.is_held else 'nobody is at work'}"
    )
    table = Table("worker", "jobs", "images/s", "doing", "silent for", title=title)
    for worker in found.workers:
        table.add_row(
            worker.name, str(worker.jobs), f"{worker.rate:.3g}", worker.now or "-", seconds_in_words(worker.silent)
        )
    return table
