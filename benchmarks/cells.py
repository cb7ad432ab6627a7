"""The table of README: whole runs beside what was published, and beside real images that had the same labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from accuracy import fidelity, is_reduced, newest, place, score
from add_run import Line
from pages import markdown

from fastcondense.recipe import recipe
from fastcondense.report.report import interval_in_words

COLUMNS = {
    "random_soft": "random real",
    "best_soft": "best real subset",
    "full_soft": "all real, as many views",
    "random_hard": "random real, hard labels",
}


def table(lines: Iterable[Line]) -> str:
    """A row for each recipe, IPC and student that has a whole run, and is published or our own; the newest of several.

    Our own of the digits, beside which nothing is published, stand elsewhere. Top-1 in % of the last epoch, mean and
    deviation over seeds; below each kind of real images the condensed ones minus it, paired by seed, with the 95 %
    interval, where the run's line holds that.
    """
    found: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        is_own = line["method"] == "fastcondense" and line["dataset"] != "digits"
        if not is_reduced(line) and (is_own or _published(line) is not None):
            key = (*place(line["recipe"]), line["recipe"], line["ipc"], line["student"])
            found.setdefault(key, []).append(line)
    rows = []
    for key in sorted(found):
        line = newest(found[key])
        own = f"**{score(line['top1_last'], line['seeds'])}**" + " *other teacher*" * (fidelity(line) == 1)
        about = f"`{line['recipe']}-ipc{line['ipc']}`", line["student"].rpartition("/")[2]
        published = _published(line)
        rows.append(
            (*about, "none" if published is None else f"{published}", own, *(_beside(line, arm) for arm in COLUMNS))
        )
    head = ["recipe", "student", "published", "condensed", *COLUMNS.values()]
    return markdown(head, rows) if rows else ""


def _published(line: Line) -> float | None:
    """Top-1 in % that the authors of its recipe have for its student and IPC."""
    accuracy: float | None = recipe.published(line["recipe"]).get(line["student"], {}).get(str(line["ipc"]))
    return accuracy


def _beside(line: Line, arm: str) -> str:
    """A baseline's score, and the margin over it."""
    if arm not in line["baselines"]:
        return "not run"
    of = line["baselines"][arm]
    chosen = f" ({of['chosen']})" if "chosen" in of else ""
    margin = f"; {interval_in_words(*of['margin'])}" if "margin" in of else ""
    return score(of["top1_last"], line["seeds"]) + chosen + margin
