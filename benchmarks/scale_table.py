"""The tables of docs/at-scale.md: seconds and memory of each stage as it grows, beside its goal, and claims."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pages import markdown
from pandas import DataFrame
from results import newest, sources

GOALS = {
    "index, counts and digest": "60 s, 1 GB",
    "the same, a second time": "2 s, 1 GB",
    "first batch of an epoch": "5 s, flat",
    "batches of 64 in the middle of an epoch": "flat",
    "stopped at the half": "memory flat",
    "pack the rest": "goes on, memory flat",
    "status of finished jobs of 8 workers": "2 s",
}
_OF_A_SET = "2 GB"
_MEASURABLE = 0.2
"""Seconds of the processor, below which growth is of no account."""


def table(lines: DataFrame) -> str:
    """Stages over files, stages over images of a set, and claims over workers; empty without lines."""
    found = lines[lines["benchmark"] == "at-scale"] if len(lines) else lines
    if not len(found):
        return ""
    stages = newest(found[found["what"] != "claims"], ("what", "classes", "ipc"))
    claims = newest(found[found["what"] == "claims"], ("workers",))
    of_files, of_sets = stages[stages["ipc"] == 0], stages[stages["ipc"] != 0]
    most = of_sets["classes"].max() if len(of_sets) else 0
    parts = [
        _stages(of_files, "classes", "{} classes", "files") if len(of_files) else "",
        _stages(of_sets[of_sets["classes"] == most], "ipc", f"{most:,} x {{}}", "images") if len(of_sets) else "",
        _claims(claims) if len(claims) else "",
        sources(found),
    ]
    return "\n\n".join(part for part in parts if part)


def _stages(found: DataFrame, by: str, head: str, of: str) -> str:
    """A row a stage: seconds of the processor and, in brackets, of the clock, for each size; growth; memory; goal."""
    sizes, rows = sorted(found[by].unique()), []
    for what, lines in found.groupby("what", sort=False):
        here = {line[by]: line for line in lines.to_dict("records")}
        cells = [f"{here[n]['cpu_s']:.3g} ({here[n]['wall_s']:.3g})" if n in here else "" for n in sizes]
        known = [here[n] for n in sizes if n in here]
        held = [line["own_mb"] for line in known]
        memory = f"{held[0]} to {held[-1]} MB" if len(held) > 1 else f"{held[0]} MB"
        goal = next((goal for part, goal in GOALS.items() if part in what), _OF_A_SET if of == "images" else "")
        rows.append(
            (what, *cells, _growth([line[by] for line in known], [line["cpu_s"] for line in known]), memory, goal)
        )
    return markdown(("stage", *(head.format(f"{n:,}") for n in sizes), "growth", "own memory", "goal"), rows)


def _growth(sizes: Sequence[float], seconds: Sequence[float]) -> str:
    """The exponent of the seconds over the size, in a log-log fit: 1 is linear."""
    known = [(size, value) for size, value in zip(sizes, seconds, strict=True) if value >= _MEASURABLE]
    if len(known) < 2:
        return ""
    return f"{np.polyfit(*np.log(np.array(known, dtype=float)).T, 1)[0]:.2f}"


def _claims(found: DataFrame) -> str:
    rows = []
    for line in found.sort_values("workers").to_dict("records"):
        calls = sum(line["calls_a_job"].values())
        rows.append((str(line["workers"]), str(line["jobs"]), f"{calls:.1f}", f"{line['overhead_percent']:.1f} %"))
    return markdown(("workers", "jobs of a second", "calls to the disk a job, of a millisecond each", "lost"), rows)
