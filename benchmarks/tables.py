"""README's tables and plot of speeds and costs, from the committed result files alone.

    python benchmarks/tables.py            # writes them
    python benchmarks/tables.py --check    # fails if they are not up to date, or if a result file is gone

A table stands in README.md between <!-- NAME: begin --> and <!-- NAME: end -->. benchmarks/results/index.md lists every
result file with its hash. The plot is compared by the figures that it was drawn from, which are written into it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from accuracy import read_lines
from described_svg import drawn_from
from peer_tables import PEER_TABLES
from profile_page import profile
from result_files import Result, index, read, run_costs
from step_plot import draw, figures
from throughput import TABLES

from fastcondense.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "results"


def replaced(text: str, name: str, made: str) -> str:
    """The text with `made` between the markers of `name`. Raises ValueError if they are not there, once each."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    parts = re.split(f"{re.escape(begin)}.*{re.escape(end)}", text, flags=re.DOTALL)
    if len(parts) != 2 or text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"README.md needs the markers {begin} and {end}, once each and in this order")
    return f"{begin}\n{made}\n{end}".join(parts)


def pages(readme: str, results: list[Result], folder: Path) -> Mapping[Path, str]:
    """What README.md, the index and the page of costs should be."""
    for name, table in (TABLES | PEER_TABLES).items():
        readme = replaced(readme, name, table(results))
    runs = run_costs(read_lines(folder / "accuracy.jsonl"))
    return {
        README: readme,
        folder / "index.md": index(folder),
        folder / "costs.md": runs,
        folder / "profile.md": profile(results),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something is not up to date")
    options = parser.parse_args(arguments)
    plot = RESULTS / "steps.svg"
    try:
        results = read(RESULTS)
        for path, text in pages(README.read_text(), results, RESULTS).items():
            if options.check and (not path.exists() or path.read_text() != text):
                raise ValueError(f"{path.name} is not up to date: python benchmarks/tables.py")
            if not options.check:
                write_atomic(path, text.encode())
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
