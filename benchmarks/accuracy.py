"""Accuracy, published against ours: what runs have scored, and the tables of docs/comparison.md.

    python benchmarks/accuracy.py add runs/sre2l/cifar10-ipc10/result.json [--reduced "2000 images a class"]
    python benchmarks/accuracy.py table [--check]

add copies a finished run's figures and settings as a line into benchmarks/results/accuracy.jsonl. table writes
accuracy.md beside it, all runs with their settings, and the part `accuracy` of the page: what is published for every
recipe that ships, what our runs gave, and reduced runs by themselves. A run with other settings than its recipe's, or
with less data (--reduced), is reduced: never equal to a published figure.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from page_parts import read_pages, replaced, write_or_check

from fastcondense.files import read_json, write_atomic
from fastcondense.recipe import recipe
from fastcondense.recipe.recipe import CORRECTED, Recipe

ROOT = Path(__file__).resolve().parents[1]
LINES = ROOT / "benchmarks" / "results" / "accuracy.jsonl"
PAGE = LINES.with_suffix(".md")
SAME_CELL = {  # settings that may differ from the recipe's in an unreduced run
    *("seed", "train.seeds", "train.student", "train.evaluate_every", "squeeze.evaluate_every"),
    *("squeeze.gate_images", "evaluate.baselines", "evaluate.full_epochs", "recover.features.batch_size"),
}
DATA = ("cifar10", "cifar100", "tiny-imagenet", "imagenet10", "imagenette", "imagenet1k", "imagenet21k", "digits")

Line = dict[str, Any]
Settings = dict[str, Any]


def settings(made: Recipe) -> Settings:
    """All that decides results, by dotted name."""

    def flat(tree: dict[str, Any], prefix: str) -> Settings:
        found = {}
        for key, value in tree.items():
            found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return found

    return flat(made.parts(), "")


def line_of(result_file: Path, reduced: str = "") -> Line:
    """A run's line, from its folder: result.json, recipe.toml, environment.json and log.jsonl.

    settings: those that are not the defaults of `Recipe`, without folders. Raises ValueError if the recipe does not
    ship, or if the result is that of another recipe.toml.
    """
    folder, result = result_file.parent, read_json(result_file)
    made = recipe.load(str(folder / "recipe.toml"))
    if made.sha256() != result["recipe_sha256"]:
        raise ValueError(f"{result_file} is not a result of the recipe.toml beside it; run evaluate again")
    if "origin" in result:
        raise ValueError(f"{result_file} is of imported images, which the recipe's method did not make")
    name = stem(made.name)
    recipe.load(f"{name}-ipc{made.ipc}")
    defaults = settings(Recipe())
    own = {key: without_folders(value) for key, value in settings(made).items() if value != defaults[key]}
    copied = ("dataset", "method", "ipc", "student", "teachers", "epochs", "seed", "seeds", "test_images")
    scores = ("top1_last", "top1_best")
    events = (folder / "log.jsonl").read_text().splitlines()
    finished = max(json.loads(event)["time"] for event in events)
    return {
        "recipe": name,
        "recipe_sha256": result["recipe_sha256"],
        **{key: result[key] for key in copied},
        **{key: rounded(result[key]) for key in scores},
        "baselines": {
            arm: {key: rounded(found[key]) for key in scores} for arm, found in sorted(result["baselines"].items())
        },
        "reduced": reduced,
        "settings": own,
        "bytes": result["bytes"],
        "seconds": {stage: round(seconds, 1) for stage, seconds in result["seconds"].items()},
        "device": result["versions"].get("gpu", read_json(folder / "environment.json")["device"]),
        "versions": result["versions"],
        "date": datetime.datetime.fromtimestamp(finished, datetime.UTC).date().isoformat(),
    }


def stem(name: str) -> str:
    """A recipe's name without -ipc<n>."""
    return re.sub(r"-ipc\d+$", "", name)


def rounded(score: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 3) for key, value in score.items()}


def without_folders(value: Any) -> Any:
    """Names of files instead of paths that mean nothing on another machine."""
    if isinstance(value, list):
        return [without_folders(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~", "..")) else value


def read_lines(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(line: Line, path: Path) -> None:
    """Appends the line to the file; one of the same run settings is replaced."""
    kept = [old for old in read_lines(path) if run_of(old) != run_of(line)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(entry) + "\n" for entry in [*kept, line]).encode())


def run_of(line: Line) -> tuple[str, str]:
    return line["recipe_sha256"], line["reduced"]


def differences(line: Line) -> dict[str, tuple[Any, Any]]:
    """Settings of the run that are not those of the recipe as it ships now: (the run's, the recipe's)."""
    shipped = settings(recipe.load(f"{line['recipe']}-ipc{line['ipc']}"))
    own = settings(Recipe()) | line["settings"]
    return {
        key: (own[key], shipped[key])
        for key in shipped
        if own.get(key) != without_folders(shipped[key]) and key not in SAME_CELL
    }


def is_reduced(line: Line) -> bool:
    return bool(line["reduced"] or differences(line))


# --- the table -------------------------------------------------------------------------------------------------------


def table(lines: Iterable[Line]) -> str:
    """The Markdown table, its notes, and the recipes that are in neither.

    One row for each recipe and student with a published accuracy or a run. Of several runs of a cell the last is shown,
    unreduced ones first.
    """
    lines = list(lines)
    unknown = sorted({line["recipe"] for line in lines} - set(recipe.names()))
    if unknown:
        raise ValueError(f"there is no recipe {unknown[0]!r}, but a result of it")
    rows, silent, notes = [], [], Notes()
    for name in sorted((name for name in recipe.names() if not name.endswith(f"-{CORRECTED}")), key=place):
        default = recipe.load(name).train.student
        runs = [line for line in lines if line["recipe"].removesuffix(f"-{CORRECTED}") == name]
        for student in [default, *sorted({line["student"] for line in runs} - {default})]:
            accuracies = recipe.published(name).get(student, {})
            mine = [line for line in runs if line["student"] == student]
            if accuracies or mine:
                who = f"`{name}`" + f", {student}" * (student != default)
                stated = ", ".join(f"{accuracy} ({ipc})" for ipc, accuracy in accuracies.items()) or "none"
                rows.append(f"| {who} | {stated} | {ours(mine, accuracies, notes)} |")
            else:
                silent.append(f"`{name}`")
    head = ["| recipe | published top-1 (IPC) | ours (IPC) |", "| --- | --- | --- |"]
    rest = ["", f"Neither published nor run: {', '.join(silent)}."] if silent else []
    return "\n".join([*head, *rows, *notes.lines(), *rest])


def reduced_table(lines: Iterable[Line]) -> str:
    """Reduced runs by method and cell: last epoch's top-1, in brackets that of random real images.

    Those have soft labels too, or hard ones if the method's labels are hard. Of several runs of a cell with one student
    the last is shown; different students are named.
    """
    found: dict[str, dict[tuple[int, str, int], dict[str, str]]] = {}
    for line in filter(is_reduced, lines):
        method, data = line["recipe"].split("/")
        variant = f" {CORRECTED}" * data.endswith(f"-{CORRECTED}")
        data = data.removesuffix(f"-{CORRECTED}")
        text = f"{line['top1_last']['mean']:.1f}"
        if random := line["baselines"].get("random_soft") or line["baselines"].get("random_hard"):
            text += f" ({random['top1_last']['mean']:.1f})"
        cells = found.setdefault(method + variant, {})
        cells.setdefault((*place(f"/{data}")[:1], data, line["ipc"]), {})[line["student"]] = text
    columns = sorted({column for cells in found.values() for column in cells})
    head = [
        f"| reduced | {' | '.join(f'{data}, IPC {ipc}' for _, data, ipc in columns)} |",
        "| --- " * (len(columns) + 1) + "|",
    ]
    rows = [
        f"| `{name}` | {' | '.join(of_students(cells[c]) if c in cells else 'not run' for c in columns)} |"
        for name, cells in sorted(found.items())
    ]
    return "\n".join([*head, *rows]) if rows else ""


def of_students(texts: dict[str, str]) -> str:
    """A reduced cell's figures by student, which is named where there are several."""
    if len(texts) == 1:
        return next(iter(texts.values()))
    return ", ".join(f"{student.rpartition('/')[2]} {text}" for student, text in texts.items())


def part(lines: list[Line]) -> str:
    """Published figures and whole runs; then reduced runs."""
    whole = table([line for line in lines if not is_reduced(line)])
    return "\n\n".join(part for part in (whole, reduced_table(lines)) if part)


def page(lines: list[Line]) -> str:
    """All runs, with what each figure belongs to."""
    return f"# Accuracy, published against ours\n\nWritten by `benchmarks/accuracy.py table`.\n\n{table(lines)}\n"


def place(name: str) -> tuple[int, str]:
    """Rows are sorted by data set, then by method."""
    method, data = name.split("/")
    return (DATA.index(data) if data in DATA else len(DATA)), method


class Notes:
    """Numbered notes below the table."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return f"<sup>{self.texts.index(text) + 1}</sup>"

    def lines(self) -> list[str]:
        numbered = [f"{number}. {text}" for number, text in enumerate(self.texts, 1)]
        return ["", *numbered] if numbered else []


def ours(runs: list[Line], published: dict[str, float], notes: Notes) -> str:
    """A row's runs by ipc, and the published ipc without one."""
    cells, missing = [], []
    for ipc in sorted({int(ipc) for ipc in published} | {line["ipc"] for line in runs}):
        mine = [line for line in runs if line["ipc"] == ipc]
        variants = sorted({line["recipe"] for line in mine})
        cells += [cell(chosen([line for line in mine if line["recipe"] == name]), notes) for name in variants]
        missing += [str(ipc)] if not mine else []
    if missing:
        cells.append(f"not run ({', '.join(missing)})" if cells else "not run")
    return ", ".join(cells)


def chosen(runs: list[Line]) -> Line:
    """The last unreduced run, or the last one."""
    return max(runs, key=lambda line: (not is_reduced(line), line["date"]))


def cell(line: Line, notes: Notes) -> str:
    """Accuracy of the last epoch, with the seeds' deviation; reduced runs are in italics and marked so."""
    accuracy = f"{line['top1_last']['mean']:.1f}"
    if line["seeds"] > 1:
        accuracy += f" ± {line['top1_last']['std']:.1f}"
    variant = f"{CORRECTED} " * line["recipe"].endswith(f"-{CORRECTED}")
    mark = notes.mark(note(line))
    if is_reduced(line):
        return f"*{variant}{accuracy} reduced* ({line['ipc']}){mark}"
    return f"**{variant}{accuracy}** ({line['ipc']}){mark}"


def note(line: Line) -> str:
    """What a figure belongs to: recipe, seeds, date, device, the best epoch, baselines, and what was reduced."""
    seeds = f"{line['seeds']} seed{'s' * (line['seeds'] > 1)} from {line['seed']}"
    scores = [f"best epoch {line['top1_best']['mean']:.1f}"]
    names = {
        "random_soft": "random real with soft labels",
        "random_hard": "with hard labels",
        "herding_soft": "real by herding with soft labels",
        "herding_hard": "by herding with hard labels",
        "full": "all real",
    }
    scores += [f"{names[arm]} {found['top1_last']['mean']:.1f}" for arm, found in ordered(line["baselines"], names)]
    who = f"`{line['recipe']}-ipc{line['ipc']}` ({line['recipe_sha256'][:8]})"
    text = f"{who}, {line['student']}, {seeds}, {line['date']}, {line['device']}; {', '.join(scores)}"
    changes = [f"{key} {shown(run)} (recipe: {shown(own)})" for key, (run, own) in differences(line).items()]
    changes += [line["reduced"]] if line["reduced"] else []
    return text + (f"; reduced: {'; '.join(changes)}" if changes else "")


def ordered(baselines: dict[str, Any], names: Iterable[str]) -> list[tuple[str, Any]]:
    return [(arm, baselines[arm]) for arm in names if arm in baselines]


def shown(value: Any) -> str:
    """A setting's value in a note; long lists by their length."""
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none" if len(value) <= 5 else f"{len(value)} entries"
    return str(value)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="copy a run's figures")
    adding.add_argument("result", type=Path)
    adding.add_argument("--reduced", default="", help="what the recipe does not say, such as a part of the data")
    commands.add_parser("table", help="write accuracy.md and the tables of the page").add_argument(
        "--check", action="store_true"
    )
    options = parser.parse_args(arguments)
    try:
        if options.command == "add":
            add(line := line_of(options.result, options.reduced), LINES)
            print(note(line))
            return 0
        lines = read_lines(LINES)
        wanted = {**replaced(read_pages(ROOT), "accuracy", part(lines)), PAGE: page(lines)}
        write_or_check(wanted, options.check, "accuracy.py table")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"accuracy: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
