"""Plots of results as SVG files that hold the figures they were drawn from, so that a check can compare them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@contextmanager
def drawn(path: Path, figures: Any, size: tuple[float, float]) -> Iterator[Axes]:
    """Axes to draw on, of a picture of so many inches; written to `path` with its figures, which are JSON."""
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
