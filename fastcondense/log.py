"""What a run tells: progress bars on a terminal, plain lines otherwise, JSON lines in a file always."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")
_SECONDS_BETWEEN_LINES = 10.0


class Log:
    """Writes to the console and, once `path` is set, to a file of JSON lines."""

    def __init__(self, console: Console | None = None, is_silent: bool = False):
        self.console = console or Console(highlight=False, soft_wrap=True, quiet=is_silent)
        self.path: Path | None = None

    def event(self, kind: str, **fields: Any) -> None:
        """One JSON line: time, kind and the fields."""
        if self.path is not None:
            line = json.dumps({"time": round(time.time(), 3), "event": kind, **fields})
            with self.path.open("a") as file:
                file.write(line + "\n")

    def say(self, text: str, **fields: Any) -> None:
        """One line for the reader, which is an event too."""
        self.console.print(text, markup=False)
        self.event("say", text=text, **fields)

    def track(self, items: Sequence[Item], what: str) -> Iterator[Item]:
        """Yields the items; shows a bar on a terminal, or a line every ten seconds."""
        return self._bar(items, what) if self.console.is_terminal else self._lines(items, what)

    def _bar(self, items: Iterable[Item], what: str) -> Iterator[Item]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True) as progress:
            yield from progress.track(items, description=what)

    def _lines(self, items: Sequence[Item], what: str) -> Iterator[Item]:
        said_at = started_at = time.monotonic()
        for done, item in enumerate(items):
            yield item
            now = time.monotonic()
            if now - said_at > _SECONDS_BETWEEN_LINES and done + 1 < len(items):
                left = (now - started_at) / (done + 1) * (len(items) - done - 1)
                self.console.print(f"{what}: {done + 1} of {len(items)}, about {left:.0f} s left", markup=False)
                said_at = now
