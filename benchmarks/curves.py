"""One set at several sizes: what `fastcondense evaluate RUN --ipc 1,2,3,5,10` has scored, as committed tables.

    python benchmarks/curves.py add runs/sizes/curve.json [--reduced "200 images a class"]
    python benchmarks/curves.py table [--check]

add copies a curve and what it belongs to as a line into benchmarks/results/curves.jsonl; a line of the same recipe and
sizes is replaced. table writes curves.md beside it: for every run its set, and all that it was compared with; and
curves-<data set>.svg, which show them together.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from accuracy import read_lines, rounded, settings, shown, stem, without_folders
from described_svg import drawn, drawn_from

from fastcondense.files import read_json, write_atomic
from fastcondense.recipe import recipe
from fastcondense.report.report import ARMS, SIZE_NAMES

LINES = Path(__file__).resolve().parent / "results" / "curves.jsonl"
HIDDEN = {"seed", "ipc", "train.seeds", "evaluate.baselines", "squeeze.weights"}  # what the caption says anyway

Line = dict[str, Any]
Curves = dict[str, dict[str, dict[str, float]]]
"""Name of a curve -> images a class -> mean and std of top-1."""


def line_of(curve_file: Path, reduced: str = "") -> Line:
    """A run's line, from its folder: curve.json, recipe.toml and environment.json.

    changes: settings that are not those of the recipe as it ships; reduced: the part of the data that it has seen.
    Raises ValueError if the curve is that of another recipe.toml.
    """
    folder, curve = curve_file.parent, read_json(curve_file)
    made = recipe.load(str(folder / "recipe.toml"))
    if made.sha256() != curve["recipe_sha256"]:
        raise ValueError(f"{curve_file} is not a curve of the recipe.toml beside it; run evaluate again")
    shipped = settings(recipe.load(f"{stem(made.name)}-ipc{made.ipc}"))
    own = settings(made)
    changes = {key: without_folders(own[key]) for key in shipped if own[key] != shipped[key] and key not in HIDDEN}
    copied = ("recipe_sha256", "student", "epochs", "seed", "seeds", "sizes")
    finished = datetime.datetime.fromtimestamp(curve_file.stat().st_mtime, datetime.UTC)
    return {
        "recipe": stem(made.name),
        **{key: curve[key] for key in copied},
        "ipc": made.ipc,
        "changes": changes,
        "reduced": reduced,
        "top1_last": {
            name: {size: rounded(score) for size, score in of.items()} for name, of in curve["top1_last"].items()
        },
        "device": curve["versions"].get("gpu", read_json(folder / "environment.json")["device"]),
        "versions": curve["versions"],
        "date": finished.date().isoformat(),
    }


def add(line: Line, path: Path) -> None:
    """Appends the line to the file; one of the same recipe and sizes is replaced."""
    kept = [old for old in read_lines(path) if curve_of(old) != curve_of(line)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(entry) + "\n" for entry in [*kept, line]).encode())


def curve_of(line: Line) -> tuple[str, list[int]]:
    return line["recipe_sha256"], line["sizes"]


def page(lines: Sequence[Line]) -> str:
    """All curves as Markdown, then the plots."""
    head = "# One set at several sizes\n\nWritten by `benchmarks/curves.py table`. Top-1 of the last epoch, in %.\n"
    plots = [f"![Top-1 by size]({plot.name})\n" for plot in figures(lines)]
    return "\n".join([head, *(f"{section(line)}\n" for line in lines), *plots])


def section(line: Line) -> str:
    """A curve: what it belongs to, and a row for each way in which sets of these sizes were made."""
    seeds = f"{line['seeds']} seed{'s' * (line['seeds'] > 1)} from {line['seed']}"
    what = f"`{line['recipe']}-ipc{line['ipc']}` ({line['recipe_sha256'][:8]}), {line['student']}, "
    what += f"{line['epochs']} epochs, {seeds}, {line['date']}, {line['device']}"
    changes = [f"{key} {shown(value)}" for key, value in line["changes"].items()]
    what += f"; changed: {'; '.join(changes)}" if changes else ""
    what += f"; of the data: {line['reduced']}." if line["reduced"] else "."
    rows = [f"| images a class | {' | '.join(map(str, line['sizes']))} |", "| --- " * (len(line["sizes"]) + 1) + "|"]
    for name, of in line["top1_last"].items():
        cells = [score(of[str(size)], line["seeds"]) for size in line["sizes"]]
        rows.append(f"| {(SIZE_NAMES | ARMS).get(name, name)} | {' | '.join(cells)} |")
    return "\n".join([what, "", *rows])


def figures(lines: Iterable[Line]) -> dict[Path, Curves]:
    """The curves of every plot; of several of one name the last."""
    found: dict[Path, Curves] = {}
    for line in lines:
        dataset = line["recipe"].partition("/")[2]
        for name, of in line["top1_last"].items():
            curves = found.setdefault(LINES.with_name(f"curves-{dataset}.svg"), {})
            curves[f"{line['recipe']}-ipc{line['ipc']}, {(SIZE_NAMES | ARMS).get(name, name)}"] = of
    return found


def draw(curves: Curves, path: Path) -> None:
    """Writes mean and deviation of top-1 over images a class as SVG."""
    with drawn(path, curves, (8, 4.5)) as axes:
        for name, of in curves.items():
            means, deviations = ([score[key] for score in of.values()] for key in ("mean", "std"))
            axes.errorbar(
                [int(size) for size in of], means, deviations, marker="o", markersize=3, capsize=2, label=name
            )
        sizes = sorted({int(size) for of in curves.values() for size in of})
        axes.set(xlabel="images a class", ylabel="top-1, %", xscale="log", xticks=sizes, xticklabels=sizes)
        axes.minorticks_off()
        axes.legend(frameon=False, loc="lower right")


def score(of: dict[str, float], seeds: int) -> str:
    return f"{of['mean']:.1f}" + f" ± {of['std']:.1f}" * (seeds > 1)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="copy a run's curve")
    adding.add_argument("curve", type=Path)
    adding.add_argument("--reduced", default="", metavar="TEXT", help="what part of the data it has seen")
    commands.add_parser("table", help="write curves.md").add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    try:
        if options.command == "add":
            add(line := line_of(options.curve, options.reduced), LINES)
            print(section(line))
            return 0
        lines = read_lines(LINES)
        made, path, plots = page(lines), LINES.with_suffix(".md"), figures(lines)
        if not options.check:
            write_atomic(path, made.encode())
            for plot, curves in plots.items():
                draw(curves, plot)
        stale = [plot.name for plot, curves in plots.items() if drawn_from(plot) != curves]
        if not path.exists() or path.read_text() != made:
            stale.append(path.name)
        if stale:
            raise ValueError(f"{', '.join(stale)}: not up to date; python benchmarks/curves.py table")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"curves: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
