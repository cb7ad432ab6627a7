"""The tables of accuracy in docs and in benchmarks/results: what is published, what ours gave, and what that cost.

A run with other settings than its recipe's, or with less data (add_run.py --reduced), is reduced: it stands by itself,
never beside a published figure. One that differs in its teachers alone stands there, and is said to.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any

from add_run import Line, read_lines, settings
from pages import markdown

from fastcondense.recipe import recipe
from fastcondense.recipe.layers import CORRECTED
from fastcondense.recipe.precision import PARTS
from fastcondense.recipe.recipe import Recipe

__all__ = ["costs", "page", "part", "read_lines", "table"]

SAME_CELL = {  # settings that may differ from the recipe's in an unreduced run
    *("seed", "train.seeds", "train.student", "train.evaluate_every"),
    *("squeeze.gate_images", "evaluate.baselines", "evaluate.full_epochs"),
    *(f"{part}.precision" for part in PARTS),
}
OF_TEACHERS = ("recover.teachers", "recover.committee.size", "recover.committee.priors", "labels.priors")
DATA = ("cifar10", "cifar100", "tiny-imagenet", "imagenet10", "imagenette", "imagenet1k", "imagenet21k", "digits")
BASELINES = {
    "random_soft": "random real with soft labels",
    "random_hard": "with hard labels",
    "herding_soft": "real by herding with soft labels",
    "herding_hard": "by herding with hard labels",
    "medoid_soft": "by medoids with soft labels",
    "bps_soft": "by BPS with soft labels",
    "best_soft": "best real subset with soft labels",
    "full_soft": "all real with soft labels in as many views",
    "full": "all real",
}


@functools.cache
def shipped_settings(name: str) -> dict[str, Any]:
    """Those of a recipe, or without a name the defaults."""
    return settings(recipe.load(name) if name else Recipe())


def differences(line: Line) -> dict[str, tuple[Any, Any]]:
    """Settings of the run that are not those of the recipe as it ships now: (the run's, the recipe's)."""
    shipped = shipped_settings(f"{line['recipe']}-ipc{line['ipc']}")
    own = shipped_settings("") | line["settings"]
    changed = (key for key in shipped if own.get(key) != shipped[key] and key not in SAME_CELL)
    return {key: (own[key], shipped[key]) for key in changed}


def is_reduced(line: Line) -> bool:
    return bool(line["reduced"]) or not all(map(is_of_teachers, differences(line)))


def is_of_teachers(key: str) -> bool:
    """Whether a setting says which teachers there are and how they are trained."""
    return key.startswith("squeeze.") or key in OF_TEACHERS


def fidelity(line: Line) -> int:
    """2 for a run of the recipe, 1 for one with other teachers, 0 for a reduced one."""
    return 0 if is_reduced(line) else 1 if differences(line) else 2


def table(lines: Iterable[Line]) -> str:
    """The Markdown table, its notes, and the recipes that are in neither.

    One row for each recipe and student with a published accuracy or a run. Of several runs of a cell the last is shown,
    those of the highest fidelity first. Raises ValueError for a result of a recipe that there is not.
    """
    lines = list(lines)
    unknown = sorted({line["recipe"] for line in lines} - set(recipe.names()))
    if unknown:
        raise ValueError(f"there is no recipe {unknown[0]!r}, but a result of it")
    rows, silent, notes = [], [], list[str]()
    for name in sorted((name for name in recipe.names() if not name.endswith(f"-{CORRECTED}")), key=place):
        default = recipe.load(name).train.student
        runs = [line for line in lines if line["recipe"].removesuffix(f"-{CORRECTED}") == name]
        for student in [default, *sorted({line["student"] for line in runs} - {default})]:
            accuracies = recipe.published(name).get(student, {})
            mine = [line for line in runs if line["student"] == student]
            if accuracies or mine:
                stated = ", ".join(f"{accuracy} ({ipc})" for ipc, accuracy in accuracies.items()) or "none"
                rows.append(
                    (f"`{name}`" + f", {student}" * (student != default), stated, ours(mine, accuracies, notes))
                )
            else:
                silent.append(f"`{name}`")
    parts = [markdown(("recipe", "published top-1 (IPC)", "ours (IPC)"), rows)]
    parts += ["\n".join(f"{number}. {text}" for number, text in enumerate(notes, 1))] if notes else []
    parts += [f"Neither published nor run: {', '.join(silent)}."] if silent else []
    return "\n\n".join(parts)


def reduced_table(lines: Iterable[Line]) -> str:
    """Reduced runs by method and cell: last epoch's top-1, in brackets that of random real images.

    Those have soft labels too, or hard ones if the method's labels are hard. Of several runs of a cell with one student
    the last is shown; different students are named.
    """
    found: dict[str, dict[tuple[Any, ...], dict[str, str]]] = {}
    for line in filter(is_reduced, lines):
        method, data = line["recipe"].split("/")
        data, _, variant = data.partition(f"-{CORRECTED}") if data.endswith(f"-{CORRECTED}") else (data, "", None)
        text = f"{line['top1_last']['mean']:.1f}"
        if random := line["baselines"].get("random_soft") or line["baselines"].get("random_hard"):
            text += f" ({random['top1_last']['mean']:.1f})"
        cells = found.setdefault(method + ("" if variant is None else f" {CORRECTED}"), {})
        cells.setdefault((*place(f"/{data}")[:1], data, line["ipc"]), {})[line["student"]] = text
    columns = sorted({column for cells in found.values() for column in cells})
    head = ["reduced", *(f"{data}, IPC {ipc}" for _, data, ipc in columns)]
    rows = [(f"`{name}`", *(of_students(of.get(c, {})) for c in columns)) for name, of in sorted(found.items())]
    return markdown(head, rows) if rows else ""


def of_students(texts: dict[str, str]) -> str:
    """A reduced cell's figures by student, which is named where there are several."""
    if len(texts) > 1:
        return ", ".join(f"{student.rpartition('/')[2]} {text}" for student, text in texts.items())
    return next(iter(texts.values()), "not run")


def part(lines: list[Line]) -> str:
    """Published figures and whole runs; then reduced runs."""
    whole = table([line for line in lines if not is_reduced(line)])
    return "\n\n".join(part for part in (whole, reduced_table(lines)) if part)


def page(lines: list[Line]) -> str:
    """All runs, with what each figure belongs to."""
    return f"# Accuracy, published against ours\n\nWritten by `benchmarks/tables.py`.\n\n{table(lines)}\n"


def place(name: str) -> tuple[int, str]:
    """Rows are sorted by data set, then by method."""
    method, data = name.split("/")
    data = re.sub("-(convnet3|muon)$", "", data)
    return (DATA.index(data) if data in DATA else len(DATA)), method


def ours(runs: list[Line], published: dict[str, float], notes: list[str]) -> str:
    """A row's runs by ipc, and the published ipc without one; what each belongs to goes into the notes."""
    cells, missing = [], []
    for ipc in sorted({int(ipc) for ipc in published} | {line["ipc"] for line in runs}):
        mine = [line for line in runs if line["ipc"] == ipc]
        for name in sorted({line["recipe"] for line in mine}):
            variant = [line for line in mine if line["recipe"] == name]
            cells.append(cell(newest(variant), notes))
        missing += [str(ipc)] if not mine else []
    if missing:
        cells.append(f"not run ({', '.join(missing)})" if cells else "not run")
    return ", ".join(cells)


def newest(runs: Iterable[Line]) -> Line:
    """Of several runs of a cell, the last of those of the highest fidelity."""
    return max(runs, key=lambda line: (fidelity(line), line["date"]))


def cell(line: Line, notes: list[str]) -> str:
    """Accuracy of the last epoch, with the seeds' deviation; reduced runs are in italics and marked so.

    Runs with other teachers than the recipe's are marked too.
    """
    text = f"{CORRECTED} " * line["recipe"].endswith(f"-{CORRECTED}") + score(line["top1_last"], line["seeds"])
    belongs_to = note(line)
    if belongs_to not in notes:
        notes.append(belongs_to)
    shown = (f"*{text} reduced*", f"**{text}** other teacher", f"**{text}**")[fidelity(line)]
    return f"{shown} ({line['ipc']})<sup>{notes.index(belongs_to) + 1}</sup>"


def score(of: dict[str, float], seeds: int) -> str:
    return f"{of['mean']:.1f}" + f" ± {of['std']:.1f}" * (seeds > 1)


def who(line: Line) -> str:
    return f"`{line['recipe']}-ipc{line['ipc']}` ({line['recipe_sha256'][:8]})"


def seeds_of(line: Line) -> str:
    return f"{line['seeds']} seed{'s' * (line['seeds'] > 1)} from {line['seed']}"


def note(line: Line) -> str:
    """What a figure belongs to: recipe, seeds, date, device, the best epoch, baselines, what was reduced, and what was
    found out since (a line's `remark`).
    """
    arms = [(name, line["baselines"][arm]) for arm, name in BASELINES.items() if arm in line["baselines"]]
    scores = [("best epoch", line["top1_best"]), *((name, found["top1_last"]) for name, found in arms)]
    stated = ", ".join(f"{name} {found['mean']:.1f}" for name, found in scores)
    text = f"{who(line)}, {line['student']}, {seeds_of(line)}, {line['date']}, {line['device']}; {stated}"
    changes = [f"{key} {shown(run)} (recipe: {shown(own)})" for key, (run, own) in differences(line).items()]
    changes += [line["reduced"]] if line["reduced"] else []
    what = "reduced" if is_reduced(line) else "other teacher"
    remark = f"; {line['remark']}" if "remark" in line else ""
    return text + (f"; {what}: {'; '.join(changes)}" if changes else "") + remark


def shown(value: Any) -> str:
    """A setting's value in a note; long lists by their length."""
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none" if len(value) <= 5 else f"{len(value)} entries"
    return str(value)


def costs(lines: Iterable[Line], plots: Iterable[str]) -> str:
    """A page of what the runs behind the tables took, and the plots of accuracy over costs, by the names of files."""
    stages, sizes = ("squeeze", "recover", "train", "evaluate"), ("images", "labels", "teachers")
    rows = [
        (
            *(who(line), line["dataset"], str(line.get("views", "")), f"{line['top1_last']['mean']:.1f}"),
            *(f"{line['seconds'][stage]:.0f}" for stage in stages),
            f"{sum(line['seconds'].values()) / 3600:.3f}",
            *(*(f"{line['bytes'][what] / 1e3:.0f}" for what in sizes), line["device"], line["date"]),
        )
        for line in lines
    ]
    head = ["run", "data set", "views", "top-1, %", *(f"{s}, s" for s in stages), "hours"]
    head += [*(f"{s}, kB" for s in sizes), "device", "date"]
    intro = (
        "Written by `benchmarks/tables.py` from the runs of `accuracy.jsonl`, reduced ones too, as the runs themselves "
        "counted it: seconds of work on one device, which other work on the machine may have lengthened. "
        "Settings of each: [accuracy.md](accuracy.md)."
    )
    pictures = "".join(f"\n![Accuracy over what it costs]({name})\n" for name in plots)
    return f"# What runs cost\n\n{intro}\n\n{markdown(head, rows)}\n{pictures}"
