"""Committed result lines as a pandas frame, the newest of what was measured twice, and where a figure is from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pages import markdown
from pandas import DataFrame

RENAMED = {"recover_step": "recover", "loader_parity": "loader-parity"}  # in files of older runners
SOMETIMES = ["statistics", "step", "of", "layer", "extrapolated", "ratio_to_own", "top1", "peer", "bytes", "GB/s"]
SOMETIMES += ["share_of_copy", "ratio_to_plain", "what", "part", "variant", "benchmark", "stage", "network", "size"]
SOMETIMES += ["known_from", "iterations", "epochs", "seed"]
"""Fields that only some lines have, and NaN stands for where a line has none."""
Line = dict[str, Any]


def frame(lines: Iterable[tuple[str, int, Line]]) -> DataFrame:
    """Lines, each with its file (DEVICE/NAME) and place in it, as rows from old to new, objects as they are.

    Columns beside those of the lines: device, file, place, date, environment, shape (of what is worked on first).
    """
    rows = []
    for file, place, line in lines:
        name, made = line.get("benchmark") or line.get("what"), line.get("environment", line)
        row = line | {"benchmark": RENAMED.get(name, name), "device": file.partition("/")[0], "environment": made}
        row |= {"file": file, "place": place, "date": f"{made.get('date', '')} {made.get('time', '')}"}
        rows.append(row | {"shape": tuple(line.get("shape") or (line.get("shapes") or [[]])[0])})
    found = DataFrame(rows, dtype=object).sort_values(["date", "file", "place"]) if rows else DataFrame()
    return found.reindex(columns=[*found.columns, *(name for name in SOMETIMES if name not in found)])


def read(folder: Path) -> DataFrame:
    """All lines of all <device>/*.jsonl, but for those of quick, ungated or failing runs and what was skipped."""
    return frame(
        (f"{path.parent.name}/{path.name}", place, line)
        for path in sorted(folder.glob("*/*.jsonl"))
        for place, line in enumerate(map(json.loads, path.read_text().splitlines()))
        if not any(line.get(key) for key in ("quick", "ungated", "failing", "skipped"))
    )


def newest(found: DataFrame, group: Sequence[str], of: Sequence[str] = ("variant",)) -> DataFrame:
    """The last line for each value of `group` and `of` among those of the group's newest file.

    So what a group holds was measured together: ratios between variants hold within a run alone.
    """
    if found.empty:
        return found
    last = found.groupby(list(group), dropna=False)["file"].transform("last")
    return found[found["file"] == last].drop_duplicates([*group, *of], keep="last")


def sources(used: DataFrame) -> str:
    """The sentence that says where a table's figures are from."""
    found = {}
    for file, made in zip(used["file"], used["environment"], strict=True):
        threads = None if made.get("driver") else made.get("threads")
        words = f", {threads} thread{'s' * (threads > 1)}" if threads else ""
        found[file] = f"`{file}` ({made.get('device')}{words}, commit {made.get('commit')}, {made.get('date')})"
    return f"From {'; '.join(found[file] for file in sorted(found))}."


def index(folder: Path) -> str:
    """A page that lists every result file with its hash, so that none can vanish or change unseen."""
    rows = []
    for path in sorted(folder.glob("*/*.jsonl")):
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        counts = Counter(str(line.get("benchmark") or line.get("what")) for line in lines)
        commits = sorted({str(line.get("environment", line).get("commit")) for line in lines})
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        name = f"{path.parent.name}/{path.name}"
        measured = ", ".join(f"{what} {count}" for what, count in counts.items())
        rows.append((f"[{name}]({name})", measured, ", ".join(commits), f"`{digest}`"))
    table = markdown(("file", "lines", "commits", "sha256"), rows)
    intro = "Written by `benchmarks/tables.py`, which shows the newest of what was measured twice."
    return f"# Results\n\n{intro}\n\n{table}\n"
