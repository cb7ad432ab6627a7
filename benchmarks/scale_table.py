"""The tables of docs/at-scale.md: seconds and memory of each stage as it grows, beside its goal, jobs, and claims; and
the plot of the same seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pages import drawn, markdown
from pandas import DataFrame, concat
from results import newest, sources

GOALS = {
    "index, counts and digest": "60 s, 1 GB",
    "the same, a second time": "2 s, 1 GB",
    "first batch of an epoch": "5 s, flat",
    "batches of 64 in the middle of an epoch": "flat",
    "then be killed": "memory flat",
    "the rest, by another": "goes on, memory flat",
    "statistics for": "one read, flat in images",
    "the same, 50": "one read, flat in images",
    "crops ranked": "linear, flat",
    "mosaics, ": "linear, flat",
    "SRe2L's images, ": "linear, flat",
    "relabel --store": "bytes as computed",
    "which one is killed": "the same bits",
    "status of finished jobs of 8 workers": "2 s",
    "plan for 64 workers": "2 s",
    "Python starts": "",
}
_OF_A_SET = "2 GB"
_SIDE = 32
"""Pixels of condensed images in lines that do not say it."""
_MEASURABLE = 0.2
"""Seconds of the processor, below which growth is of no account."""


def table(lines: DataFrame) -> str:
    """Stages over files, stages over images of a set, jobs, and claims over workers; empty without lines."""
    found = lines[lines["benchmark"] == "at-scale"] if len(lines) else lines
    if not len(found):
        return ""
    of_files, of_sets = _of_stages(found)
    claims = newest(found[found["what"] == "claims"], ("workers",))
    parts = [_stages(of_files, "classes", "{} classes", "files") if len(of_files) else ""]
    for size, lines in of_sets.items():
        head = f"{lines['classes'].max():,} x {{}}" + f", {size} pixels" * (size != _SIDE)
        parts.append(_stages(lines, "ipc", head, "images"))
    parts += [
        _jobs(_newest(found).to_dict("records")),
        _claims(claims) if len(claims) else "",
        sources(concat([of_files, *of_sets.values(), claims])),
    ]
    return "\n\n".join(part for part in parts if part)


def _of_stages(found: DataFrame) -> tuple[DataFrame, dict[int, DataFrame]]:
    """The newest lines of stages that grow with classes, and of those that grow with images of the most classes, by the
    side of these in pixels."""
    stages = _newest(found)
    of_sets = stages[stages["ipc"] != 0]
    of_sets = of_sets[of_sets["classes"] == of_sets["classes"].max()]
    sizes = sorted(of_sets["size"].unique())
    return stages[stages["ipc"] == 0], {int(size): of_sets[of_sets["size"] == size] for size in sizes}


def _newest(found: DataFrame) -> DataFrame:
    known = found[found["what"] != "claims"]
    known = known.assign(size=known["size"].where(known["size"].notna(), _SIDE))
    return newest(known, ("what", "classes", "ipc", "size"))


Curves = dict[str, dict[str, float]]
"""Seconds of the processor by stage and size; sizes as multiples of the smallest."""


def growth(lines: DataFrame) -> dict[str, Curves]:
    """The curves of the stages that take measurable time, over classes and over images a class of each size."""
    found = lines[lines["benchmark"] == "at-scale"] if len(lines) else lines
    of_files, of_sets = _of_stages(found) if len(found) else (found, {_SIDE: found})
    name = "images a class"
    of_images = {
        name + f" of {size} pixels" * (size != _SIDE): _curves(of, "ipc") for size, of in sorted(of_sets.items())
    }
    return {"classes": _curves(of_files, "classes")} | of_images


def _curves(found: DataFrame, by: str) -> Curves:
    curves: Curves = {}
    for what, lines in found.groupby("what", sort=False) if len(found) else ():
        here = {line[by]: line["cpu_s"] for line in lines.to_dict("records")}
        if len(here) > 1 and max(here.values()) >= _MEASURABLE:
            curves[what] = {f"{size / min(here):g}": seconds for size, seconds in sorted(here.items())}
    return curves


def draw(curves: dict[str, Curves], path: Path) -> None:
    """Writes seconds over size, both logarithmic, as SVG: what grows as the grey lines do is linear."""
    with drawn(path, curves, (9, 6)) as axes:
        for style, (name, stages) in zip(("-", "--", ":", "-."), curves.items(), strict=False):
            for number, (what, seconds) in enumerate(stages.items()):
                look = {"linestyle": style, "color": f"C{number % 10}", "marker": "o", "markersize": 3}
                axes.plot([float(size) for size in seconds], list(seconds.values()), label=f"{what}, {name}", **look)
        axes.set(
            xlabel="times as many classes (lines), or images a class (dashes; dots: of 224 pixels)",
            xscale="log",
            yscale="log",
        )
        axes.set(ylabel="seconds of the processor", ylim=axes.get_ylim())
        for first in (1e-3, 1e-2, 1e-1, 1, 10):
            axes.plot([1, 100], [first, 100 * first], color="0.85", linewidth=0.8, zorder=0)
        axes.legend(frameon=False, fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))


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


def _jobs(found: Sequence[dict[str, Any]]) -> str:
    """What recover spends beside its jobs themselves, and which share of a job of a second that would be."""
    rows = [
        (
            line["what"],
            f"{line['classes']:,} x {line['a_class']}",
            f"{line['jobs']:,}",
            f"{line['job_ms']:.0f}",
            f"{line['beside_ms']:.1f}",
            f"{line['beside_ms'] / 10:.1f} %",
            f"{line['own_mb']} MB",
        )
        for line in found
        if line.get("beside_ms") == line.get("beside_ms", "")  # NaN where a line has none
    ]
    head = ("recover", "classes x images", "jobs", "ms a job", "ms beside it", "of a job of a second", "own memory")
    return markdown(head, rows) if rows else ""


def _claims(found: DataFrame) -> str:
    rows = []
    for line in found.sort_values("workers").to_dict("records"):
        calls = sum(line["calls_a_job"].values())
        rows.append((str(line["workers"]), str(line["jobs"]), f"{calls:.1f}", f"{line['overhead_percent']:.1f} %"))
    return markdown(("workers", "jobs of a second", "calls to the disk a job, of a millisecond each", "lost"), rows)
