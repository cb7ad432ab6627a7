"""One set at several sizes: what `fastcondense evaluate RUN --ipc 1,2,5` has scored, as committed tables and plots; and
plots of accuracy over what it costs, from whole runs of a recipe at several sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from accuracy import score, seeds_of, shown, who
from add_run import Line
from pages import drawn, markdown

from fastcondense.report.report import ARMS, SIZE_NAMES

AXES = {"curves": "images a class", "views": "views of a student", "bytes": "bytes that training needs"}
"""What a plot's horizontal axis shows, by the beginning of its file's name."""
NAMES = SIZE_NAMES | ARMS
Curves = dict[str, dict[str, dict[str, float]]]
"""Name of a curve -> images a class -> mean and std of top-1."""


def page(lines: Iterable[Line]) -> str:
    """All curves as Markdown, then the plots."""
    lines = list(lines)
    head = "# One set at several sizes\n\nWritten by `benchmarks/tables.py`. Top-1 of the last epoch, in %.\n"
    plots = [f"![Top-1 by size]({name})\n" for name in figures(lines)]
    return "\n".join([head, *(f"{section(line)}\n" for line in lines), *plots])


def section(line: Line) -> str:
    """A curve: what it belongs to, and a row for each way in which sets of these sizes were made."""
    what = (
        f"{who(line)}, {line['student']}, {line['epochs']} epochs, {seeds_of(line)}, {line['date']}, {line['device']}"
    )
    changes = [f"{key} {shown(value)}" for key, value in line["changes"].items()]
    what += f"; changed: {'; '.join(changes)}" if changes else ""
    what += f"; of the data: {line['reduced']}." if line["reduced"] else "."
    rows = [
        (NAMES.get(name, name), *(score(of[str(size)], line["seeds"]) for size in line["sizes"]))
        for name, of in line["top1_last"].items()
    ]
    return f"{what}\n\n{markdown(['images a class', *map(str, line['sizes'])], rows)}"


def figures(lines: Iterable[Line]) -> dict[str, Curves]:
    """The curves of every plot by the file's name; of several of one name the last."""
    found: dict[str, Curves] = {}
    for line in lines:
        dataset = line["recipe"].partition("/")[2]
        for name, of in line["top1_last"].items():
            title = f"{line['recipe']}-ipc{line['ipc']}, {NAMES.get(name, name)}"
            found.setdefault(f"curves-{dataset}.svg", {})[title] = of
    return found


def over_costs(lines: Iterable[Line]) -> dict[str, Curves]:
    """Plots of accuracy over views and over bytes, by the file's name: of each recipe with several sizes its set and
    the baselines, a point a size.
    """
    found: dict[str, Curves] = {}
    for line in sorted(lines, key=lambda line: line["ipc"]):
        if "views" not in line:
            continue
        for name, of in {"nested": line, **line["baselines"]}.items():
            for kind, cost in (("views", of["views"]), ("bytes", of["needs"])):
                curve = found.setdefault(f"{kind}-{line['recipe'].replace('/', '-')}.svg", {})
                curve.setdefault(NAMES.get(name, name), {})[str(cost)] = of["top1_last"]
    return {name: curves for name, curves in found.items() if len(curves[NAMES["nested"]]) > 1}


def draw(curves: Curves, path: Path) -> None:
    """Writes mean and deviation of top-1 over images a class, views or bytes as SVG."""
    with drawn(path, curves, (8, 4.5)) as axes:
        for name, of in curves.items():
            means, deviations = ([score[key] for score in of.values()] for key in ("mean", "std"))
            axes.errorbar(list(map(int, of)), means, deviations, marker="o", markersize=3, capsize=2, label=name)
        kind = path.name.partition("-")[0]
        axes.set(xlabel=AXES[kind], ylabel="top-1, %", xscale="log")
        if kind == "curves":
            sizes = sorted({int(size) for of in curves.values() for size in of})
            axes.set(xticks=sizes, xticklabels=sizes)
            axes.minorticks_off()
        axes.legend(frameon=False, loc="lower right")
