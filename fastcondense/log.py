"""What a run tells: progress bars on a terminal, plain lines otherwise, JSON lines in a file always."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from .loaders.reading import open_file, writing
from .tracking import Tracker, scalars_of
from .words import printable, seconds_in_words

Item = TypeVar("Item")
_SECONDS_BETWEEN_LINES = 10.0
_LONGEST_LINE = 1 << 20
"""Bytes of a line; the parts of a longer one, which we do not write, are left out."""
_FIELDS: dict[str, dict[str, type]] = {  # of events, what readers count with
    "start": {"command": str},
    "cost": {"stage": str, "hours": float, "unit": str},
    "recover": {"jobs": int, "images": int},
    "rankings": {"seconds": float},
    "targets": {"seconds": float},
    "working": {"job": int},
    "job": {"index": int, "images": int, "seconds": float},
}
_MORE = ("iteration", "iterations")  # of what is in hand, once it is told


class PlainConsole(Console):
    """Shows texts and cells of tables as they are: names in them are no markup, no emoji and no terminal's commands."""

    def __init__(self, **more: Any):
        super().__init__(**more)
        self._width = self._width or None  # COLUMNS=0 is no width

    def on_broken_pipe(self) -> None:
        """Whoever read our lines has gone: the command line ends as others do then, and not as rich does."""
        raise

    def render_str(self, text: str, **more: Any) -> Text:
        return super().render_str(printable(text), **{**more, "markup": False, "emoji": False})


def plain(text: str) -> Text:
    """The text as it is: what the console shows of a `str`, for tables that are made elsewhere."""
    return Text(printable(text))


class Log:
    """Writes to the console, once `path` is set to a file of JSON lines, and to the trackers that there are."""

    def __init__(self, console: Console | None = None, is_silent: bool = False):
        self.console = console or PlainConsole(highlight=False, soft_wrap=True, quiet=is_silent)
        self.path: Path | None = None
        self.trackers: list[Tracker] = []
        self._advance: Callable[[float], None] | None = None

    def write_to(self, path: Path) -> None:
        """Goes on in the file, on a line of its own if the last one was torn.

        Raises ValueError for a link, which would be followed, and for what is no file.
        """
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise ValueError(f"{path} is a link or no file, and nothing is written there; remove it")
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.write(b"\n")
        self.path = path

    def event(self, kind: str, **fields: Any) -> None:
        """One JSON line: time, kind and the fields."""
        if self.path is not None:
            line = json.dumps({"time": round(time.time(), 3), "event": kind, **fields})
            with writing(self.path), self.path.open("a") as file:
                file.write(line + "\n")
        if self.trackers:
            group, numbers, step = scalars_of(kind, fields)
            for tracker in self.trackers:
                tracker.scalars(group, numbers, step)

    def picture(self, path: Path) -> None:
        """Says where a picture was written, and shows it to the trackers."""
        self.say(f"inspect: {path}")
        for tracker in self.trackers:
            tracker.picture(path.stem, path)

    def close(self) -> None:
        """Ends the trackers."""
        for tracker in self.trackers:
            tracker.close()
        self.trackers = []

    def say(self, text: str, **fields: Any) -> None:
        """One line for the reader, which is an event too."""
        self.tell(text)
        self.event("say", text=text, **fields)

    def tell(self, text: str) -> None:
        """One line for the reader alone."""
        self.console.print(text, markup=False)

    def track(self, items: Sequence[Item], what: str) -> Iterator[Item]:
        """Yields the items, and shows how many are done."""
        with self.progress(what, len(items)) as show:
            for done, item in enumerate(items):
                yield item
                show(done + 1)

    def within(self, part: float, text: str) -> None:
        """Shows how much of the item in hand is done: on the bar that there is, else in words."""
        if self._advance is not None:
            self._advance(part)
        else:
            self.tell(text)

    @contextlib.contextmanager
    def progress(self, what: str, total: int, first: int = 0) -> Iterator[Callable[[int], None]]:
        """Takes how many of `total` are done, from `first` on: a bar on a terminal, or a line every ten seconds."""
        if self.console.is_terminal:
            name = TextColumn("{task.description}", markup=False)
            columns = (name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            with Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True) as bar:
                task = bar.add_task(what, total=total, completed=first)
                self._advance = lambda part: bar.update(task, completed=int(bar.tasks[task].completed) + part)
                yield lambda done: bar.update(task, completed=done)
            self._advance = None
            return
        said_at = started_at = time.monotonic()

        def show(done: int) -> None:
            nonlocal said_at
            now = time.monotonic()
            if now - said_at > _SECONDS_BETWEEN_LINES and first < done < total:
                left = (now - started_at) / (done - first) * (total - done)
                self.tell(f"{what}: {done} of {total}, about {seconds_in_words(left)} left")
                said_at = now

        yield show


def read_events(path: Path, kinds: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yields the events of these kinds in a log, with a time and the fields that readers count with, and no others.

    Lines that are torn, hold NULs or lack a field are left out: a log never stops anything.
    """
    if not path.is_file():
        return
    with open_file(path) as file:
        while line := file.readline(_LONGEST_LINE):
            with contextlib.suppress(ValueError, RecursionError):
                entry = json.loads(line)
                if isinstance(entry, dict) and entry.get("event") in kinds and _is_complete(entry):
                    known = ("time", "event", *_FIELDS.get(entry["event"], ()), *_MORE)
                    yield {key: entry[key] for key in known if key in entry}


def _is_complete(entry: dict[str, Any]) -> bool:
    fields: dict[str, type] = {"time": float} | _FIELDS.get(entry["event"], {})
    for name, kind in fields.items():
        value: Any = entry.get(name)
        is_number = isinstance(value, int) or (kind is float and isinstance(value, float))
        is_right = isinstance(value, str) if kind is str else is_number and -1e15 < value < 1e15  # finite, too
        if not is_right:
            return False
    return True
