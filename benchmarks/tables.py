"""Every generated table, page and plot of README, docs and benchmarks/results, from committed result files alone.

    python benchmarks/tables.py            # writes them
    python benchmarks/tables.py --check    # fails if they are not up to date, or if a result file is gone

A table stands between its markers on one of the pages (pages.py): speeds (throughput.py), accuracy (accuracy.py,
cells.py), probes of frozen backbones (frozen.py), ImageNet's shape (scale_table.py).
benchmarks/results/ gets index.md, which lists every result file with its hash, accuracy.md, costs.md, curves.md and
profile.md (step_pages.py), and the plots, which are compared by the figures that they were drawn from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accuracy
import cells
import curves
import frozen
import scale_table
import step_pages
import throughput
from accuracy import read_lines
from pages import read_pages, replaced, stale, write
from results import index, read

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DRAWERS: dict[str, Callable[[Any, Path], None]] = {"steps.svg": step_pages.draw, "at-scale.svg": scale_table.draw}
"""What draws a plot; all others are curves of accuracy."""


def wanted(root: Path, folder: Path) -> tuple[dict[Path, str], dict[Path, Any]]:
    """What all pages should be, and what the plots should be drawn from."""
    pages, lines = read_pages(root), read(folder)
    found, sizes = read_lines(folder / "accuracy.jsonl"), read_lines(folder / "curves.jsonl")
    runs = [line for line in found if not frozen.is_probe(line)]
    over_costs = curves.over_costs(run for run in runs if not accuracy.is_reduced(run))
    for name in throughput.TABLES:
        pages = replaced(pages, name, throughput.table(name, lines))
    pages = replaced(pages, "frozen backbones", frozen.table(found))
    pages = replaced(pages, "at scale", scale_table.table(lines))
    made = {
        "index.md": index(folder),
        "profile.md": step_pages.profile(lines),
        "accuracy.md": accuracy.page(runs),
        "costs.md": accuracy.costs(runs, over_costs),
        "curves.md": curves.page(sizes),
    }
    pages = replaced(pages, "cells", cells.table(runs))
    texts = replaced(pages, "accuracy", accuracy.part(runs)) | {folder / name: text for name, text in made.items()}
    plots = {folder / name: of for name, of in (curves.figures(sizes) | over_costs).items()}
    plots |= {folder / "steps.svg": step_pages.bars(lines)}
    return texts, plots | {root / "docs" / "images" / "at-scale.svg": scale_table.growth(lines)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something is not up to date")
    options = parser.parse_args(arguments)
    try:
        texts, plots = wanted(ROOT, RESULTS)
        if not options.check:
            write(texts)
            for plot, of in plots.items():
                DRAWERS.get(plot.name, curves.draw)(of, plot)
        if old := [path.name for path in stale(texts, plots)]:
            raise ValueError(f"{', '.join(old)}: not up to date; python benchmarks/tables.py")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"tables: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
