"""What scripts write into README and docs: parts between <!-- NAME: begin --> and <!-- NAME: end -->, tables, plots.

A plot holds the figures that it was drawn from, so that a check can compare them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas

from fastcondense.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def read_pages(root: Path) -> dict[Path, str]:
    """README.md and the pages of docs/, with their texts."""
    return {path: path.read_text() for path in (root / "README.md", *sorted((root / "docs").glob("*.md")))}


def replaced(pages: Mapping[Path, str], name: str, made: str) -> dict[Path, str]:
    """The pages with `made` as the part of that name. Raises ValueError unless they have exactly one."""
    begin, end = (f"<!-- {name}: {mark} -->" for mark in ("begin", "end"))
    holders = [path for path, text in pages.items() if begin in text or end in text]
    if len(holders) == 1:
        text = pages[holders[0]]
        parts = re.split(f"{re.escape(begin)}.*{re.escape(end)}", text, flags=re.DOTALL)
        if len(parts) == 2 and text.count(begin) == text.count(end) == 1:
            return {**pages, holders[0]: f"{begin}\n{made}\n{end}".join(parts)}
    raise ValueError(f"README.md and docs/ need the markers {begin} and {end}, once each and in this order")


def stale(wanted: Mapping[Path, str], plots: Mapping[Path, Any]) -> list[Path]:
    """The files that are not as wanted, and the plots that were not drawn from these figures."""
    texts = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    return [*texts, *(path for path, figures in plots.items() if drawn_from(path) != figures)]


def write(wanted: Mapping[Path, str]) -> None:
    """Writes the files that are not as wanted."""
    for path in stale(wanted, {}):
        write_atomic(path, wanted[path].encode())


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table without padding, so that a cell that changes is one changed line."""
    table = pandas.DataFrame(list(rows), columns=list(head)).to_markdown(
        index=False, tablefmt="github", disable_numparse=True
    )
    first, _, *others = re.sub(" +", " ", table).splitlines()
    return "\n".join([first, "| --- " * len(head) + "|", *others])


@contextmanager
def drawn(path: Path, figures: Any, size: tuple[float, float]) -> Iterator[Axes]:
    """Axes to draw on, of a picture of so many inches; written to `path` as SVG with its figures, which are JSON."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "fastcondense", "svg.fonttype": "none", "font.size": 9}):
        picture, axes = pyplot.subplots(figsize=size, layout="constrained")
        yield axes
        axes.spines[["top", "right"]].set_visible(False)
        picture.savefig(path, metadata={"Date": None, "Description": json.dumps(figures)})
        pyplot.close(picture)


def drawn_from(path: Path) -> Any:
    """The figures of a plot that `drawn` has written, or None if there is none."""
    match = re.search(r"<dc:description>(.*?)</dc:description>", path.read_text(), re.DOTALL) if path.exists() else None
    return json.loads(unescape(match[1])) if match else None
