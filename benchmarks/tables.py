"""The tables and the plot of speeds and costs in README and docs, from the committed result files alone.

    python benchmarks/tables.py            # writes them
    python benchmarks/tables.py --check    # fails if they are not up to date, or if a result file is gone

A table stands between its markers on one of the pages (page_parts.py). benchmarks/results/index.md lists every result
file with its hash. The plot is compared by the figures that it was drawn from, which are written into it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from accuracy import read_lines
from described_svg import drawn_from
from page_parts import read_pages, replaced, write_or_check
from peer_tables import PEER_TABLES
from profile_page import profile
from result_files import Result, index, read, run_costs
from step_plot import draw, figures
from throughput import TABLES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def files(root: Path, results: list[Result], folder: Path) -> Mapping[Path, str]:
    """What the pages, the index, and the pages of costs and of profiles should be."""
    pages = read_pages(root)
    for name, table in (TABLES | PEER_TABLES).items():
        pages = replaced(pages, name, table(results))
    return {
        **pages,
        folder / "index.md": index(folder),
        folder / "costs.md": run_costs(read_lines(folder / "accuracy.jsonl")),
        folder / "profile.md": profile(results),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something is not up to date")
    options = parser.parse_args(arguments)
    plot = RESULTS / "steps.svg"
    try:
        results = read(RESULTS)
        write_or_check(files(ROOT, results, RESULTS), options.check, "tables.py")
        wanted = figures(results)
        if options.check and drawn_from(plot) != wanted:
            raise ValueError(f"{plot.name} is not up to date: python benchmarks/tables.py")
        if not options.check:
            draw(wanted, plot)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"tables: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
