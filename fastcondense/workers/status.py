"""`fastcondense status RUN`, from any shell that sees the folder: what the workers of a run have done, and are doing.

Read from their logs and the shards alone. Times of different machines are never compared: how long a worker has been
silent is the age of its log by the clock of the file system, and rates are images over a job's own seconds.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from ..loaders.reading import check_folder
from ..log import Log, read_events
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
    """Seconds that these took."""
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
        """Hours of all workers in all jobs: GPU-hours where they are GPUs."""
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
    logs = {path: list(read_events(path, ("recover", "working", "job"))) for path in paths}
    newest = max(path.stat().st_mtime for path in paths)
    now = max(newest, _clock(run))
    plans = [event for events in logs.values() for event in events if event["event"] == "recover"]
    plan = max(plans, key=lambda event: event["images"], default={"jobs": 0, "images": 0})
    sizes = {event["index"]: event["images"] for events in logs.values() for event in events if event["event"] == "job"}
    shards = [int(path.stem.removeprefix("shard-")) for path in (run / "condensed").glob("shard-[0-9]*.safetensors")]
    usual = plan["images"] / plan["jobs"] if plan["jobs"] else 0
    workers = [_worker(path, events, now - path.stat().st_mtime) for path, events in logs.items()]
    images = round(sum(sizes.get(shard, usual) for shard in shards))
    return Status(workers, plan["jobs"], plan["images"], len(shards), images, is_held(run))


def _worker(path: Path, events: list[dict[str, Any]], silent: float) -> Worker:
    jobs = [event for event in events if event["event"] == "job"]
    recent = jobs[-_RECENT:]
    seconds = sum(event["seconds"] for event in recent)
    last = next((event for event in reversed(events) if event["event"] in ("working", "job")), None)
    longest = max((event["seconds"] for event in recent), default=0.0)
    is_working = last is not None and last["event"] == "working" and silent < max(_SILENT, 3 * longest)
    rate = sum(event["images"] for event in recent) / seconds if seconds else 0.0
    doing = _doing(last) if is_working and last is not None else ""
    return Worker(path.stem, len(jobs), sum(event["seconds"] for event in jobs), rate, doing, silent)


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
        f"{found.rate:.3g} images/s, {found.hours:.3g} worker-hours; "
        f"{'finished' if found.is_finished else f'{left:.0f} s left' if left else 'no rate yet'}; "
        f"{'a launch is at work' if found.is_held else 'nobody is at work'}"
    )
    table = Table("worker", "jobs", "images/s", "doing", "silent for", title=title)
    for worker in found.workers:
        table.add_row(worker.name, str(worker.jobs), f"{worker.rate:.3g}", worker.now or "-", f"{worker.silent:.0f} s")
    return table
