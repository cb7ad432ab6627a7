"""Committed results as they are read for tables: lines with their file, the newest of what was measured twice."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RENAMED = {"recover_step": "recover", "loader_parity": "loader-parity"}  # in files of older runners


@dataclass(frozen=True)
class Result:
    """One line: its benchmark, what it says, and where it stands."""

    benchmark: str
    line: dict[str, Any]
    device: str
    """The folder of the device."""
    file: str
    place: int
    """Its number in the file: later runs of a day stand behind earlier ones."""

    def __getitem__(self, key: str) -> Any:
        return self.line[key]

    def get(self, key: str, otherwise: Any = None) -> Any:
        return self.line.get(key, otherwise)

    @property
    def environment(self) -> dict[str, Any]:
        return self.line.get("environment", self.line)

    @property
    def age(self) -> tuple[str, str, int]:
        """Sorts results from old to new."""
        return str(self.environment.get("date", "")), self.file, self.place

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first thing that it works on."""
        return tuple(self.line.get("shape") or (self.line.get("shapes") or [[]])[0])


def read(folder: Path) -> list[Result]:
    """All lines of all <device>/*.jsonl, but for those of quick or ungated runs and what was skipped."""
    found = []
    for path in sorted(folder.glob("*/*.jsonl")):
        for place, text in enumerate(path.read_text().splitlines()):
            line = json.loads(text)
            if not any(line.get(key) for key in ("quick", "ungated", "skipped")):
                name = line.get("benchmark") or line.get("what")
                name = RENAMED.get(name, name)
                found.append(Result(name, line, path.parent.name, f"{path.parent.name}/{path.name}", place))
    return found


def newest(results: Iterable[Result], key: Callable[[Result], Hashable]) -> list[Result]:
    """Of all lines with the same key the newest one; in the order in which they stand in their files."""
    kept: dict[Hashable, Result] = {}
    for result in sorted(results, key=lambda result: result.age):
        kept[key(result)] = result
    return sorted(kept.values(), key=lambda result: result.age)


def together(results: Iterable[Result], key: Callable[[Result], Hashable]) -> list[Result]:
    """Lines of which those with the same key were measured together: all of them are from the newest file of the key.

    Ratios between variants hold within a run alone.
    """
    results = list(results)
    files = {key(result): result.file for result in sorted(results, key=lambda result: result.age)}
    return [result for result in results if files[key(result)] == result.file]


def sources(results: Iterable[Result]) -> str:
    """The sentence that says where a table's figures are from."""
    found: dict[str, str] = {}
    for result in results:
        made = result.environment
        where = str(made.get("device"))
        threads = (
            f", {made['threads']} thread{'s' * (made['threads'] > 1)}"
            if result.device.startswith("cpu") and "threads" in made
            else ""
        )
        found[result.file] = f"`{result.file}` ({where}{threads}, commit {made.get('commit')}, {made.get('date')})"
    return f"From {'; '.join(found[file] for file in sorted(found))}." if found else ""


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def index(folder: Path) -> str:
    """A page that lists every result file with its hash, so that none can vanish or change unseen."""
    rows = []
    for path in sorted(folder.glob("*/*.jsonl")):
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        counts = Counter(str(line.get("benchmark") or line.get("what")) for line in lines)
        commits = sorted({str(line.get("environment", line).get("commit")) for line in lines})
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        measured = ", ".join(f"{name} {count}" for name, count in counts.items())
        name = f"{path.parent.name}/{path.name}"
        rows.append((f"[{name}]({name})", measured, ", ".join(commits), f"`{digest}`"))
    table = markdown(("file", "lines", "commits", "sha256"), rows)
    intro = "Written by `benchmarks/tables.py`, which shows the newest of what was measured twice."
    return f"# Results\n\n{intro}\n\n{table}\n"


def run_costs(lines: Iterable[dict[str, Any]]) -> str:
    """A page of what the runs behind the accuracy tables took, from their lines in accuracy.jsonl."""
    rows = []
    for line in lines:
        seconds, sizes = line["seconds"], line["bytes"]
        stages = [f"{seconds[stage]:.0f}" for stage in ("squeeze", "recover", "train", "evaluate")]
        kilobytes = [f"{sizes[what] / 1e3:.0f}" for what in ("images", "labels", "teachers")]
        name, hours = f"`{line['recipe']}-ipc{line['ipc']}` ({line['recipe_sha256'][:8]})", sum(seconds.values()) / 3600
        rows.append((name, line["dataset"], *stages, f"{hours:.3f}", *kilobytes, line["device"], line["date"]))
    head = ("run", "data set", "squeeze, s", "recover, s", "train, s", "evaluate, s", "hours", "images, kB")
    table = markdown((*head, "labels, kB", "teachers, kB", "device", "date"), rows)
    intro = (
        "Written by `benchmarks/tables.py` from the runs of `accuracy.jsonl`, reduced ones too, as the runs themselves "
        "counted it: seconds of work on one device, which other work on the machine may have lengthened. "
        "Settings of each: [accuracy.md](accuracy.md)."
    )
    return f"# What runs cost\n\n{intro}\n\n{table}\n"
