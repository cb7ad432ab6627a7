"""The report's plots: SVG by matplotlib, in the page's own colours and letters, so that it follows light and dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from ..sets.loss_bands import LossBand
from ..sets.record import LayerLosses
from ..words import bytes_in_words
from .html import Html, escape

COLORS = tuple(f"var(--c{k})" for k in range(10))
_INK, _MUTED, _LINE, _PAPER = "#010101", "#020202", "#030303", "#040404"
_SERIES = tuple(f"#0500{k:02x}" for k in range(10))
# what matplotlib draws with, and what the page replaces it by
_REPLACED = {_INK: "var(--ink)", _MUTED: "var(--muted)", _LINE: "var(--line)", _PAPER: "var(--paper)"}
_REPLACED |= dict(zip(_SERIES, COLORS, strict=True))
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.titlesize": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "svg.hashsalt": "fastcondense",
}
POINTS = 300
"""Points of a curve, at most."""
_ROW = 0.19  # inches of a row of a plot by classes or by layers


def curve(band: LossBand, column: int, name: str) -> Html:
    """One of the losses over the iterations: the mean over jobs and the range between them."""
    with matplotlib.rc_context(_STYLE):
        figure, axis = _axes(3.4, 2.3)
        _draw_band(axis, band, column, name, _SERIES[0])
        return _svg(figure, f"{name} over the iterations")


def save_losses(band: LossBand, path: Path) -> None:
    """A PNG of cross-entropy and matching loss over iterations: mean over jobs and the range between them."""
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    names = {1: f"cross-entropy, {band.num_jobs} jobs", 2: f"weighted matching loss, {band.num_jobs} jobs"}
    for axis, (column, name) in zip(figure.subplots(1, 2), names.items(), strict=True):
        _draw_band(axis, band, column, name, "C0")
    figure.savefig(path, dpi=120)


def _draw_band(axis: Any, band: LossBand, column: int, name: str, color: str) -> None:
    low, high = band.low[:, column], band.high[:, column]
    axis.fill_between(band.middle, low, high, color=color, alpha=0.2, linewidth=0)
    axis.plot(band.middle, band.mean[:, column], color=color, linewidth=1.4)
    axis.set(title=name, xlabel="iteration")
    if (low > 0).all():  # CIM has no cross-entropy
        axis.set_yscale("log")
        _mark(axis.yaxis, high.max() / low.min())


def layers(table: LayerLosses) -> Html:
    """A heat map: each layer's matching loss in the iterations that were kept; layers from the input downwards."""
    losses = table.losses.numpy().T
    num_layers, count = losses.shape
    positive = losses[losses > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (1e-3, 1.0)
    low, high = max(low, high / 1e4), max(high, low * 1.001)
    every = -(-num_layers // 60)
    with matplotlib.rc_context(_STYLE):
        figure, axis = _axes(10.6, 0.9 + _ROW * num_layers / every)
        masked = np.ma.masked_less_equal(losses, 0)
        picture = axis.imshow(
            masked, aspect="auto", interpolation="none", norm=LogNorm(low, high, clip=True), cmap="viridis"
        )
        ticks = np.unique(np.linspace(0, count - 1, min(count, 9)).round().astype(int))
        axis.set_xticks(ticks, [str(int(table.iterations[k])) for k in ticks])
        axis.set_yticks(range(0, num_layers, every), table.names[::every])
        axis.tick_params(length=0)
        axis.set(xlabel="iteration")
        axis.grid(False)
        scale = figure.colorbar(picture, ax=axis, pad=0.015, aspect=30)
        scale.outline.set_visible(False)
        _mark(scale.ax.yaxis, high / low)
        return _svg(figure, f"matching loss of each layer of {table.teacher} over the iterations")


def views(histories: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]], colors: Sequence[int]) -> Html:
    """Top-1 over the views that students have seen, one or more an arm: a line for each, in the arm's colour."""
    with matplotlib.rc_context(_STYLE):
        figure, axis = _axes(5.2, 3.0)
        for students, color in zip(histories.values(), colors, strict=True):
            for x, y in students:
                marker = "o" if len(x) < 30 else ""
                axis.plot(x, y, color=_SERIES[color], linewidth=1.3, marker=marker, markersize=2.5)
        axis.set(xlabel="views", ylabel="top-1, %")
        return _svg(figure, "top-1 of the students over the views that they have seen")


def needs(points: Sequence[tuple[int, float, float, int]]) -> Html:
    """Top-1 by the bytes that training needs, a dot an arm: bytes, mean, deviation, number of its colour."""
    with matplotlib.rc_context(_STYLE):
        figure, axis = _axes(5.2, 3.0)
        for count, mean, deviation, color in points:
            axis.errorbar([count], [mean], [deviation], color=_SERIES[color], marker="o", markersize=5, capsize=2)
        axis.set(xlabel="bytes that training needs", ylabel="top-1, %", xscale="log")
        low, high = (pick(count for count, *_ in points) for pick in (min, max))
        axis.set_xlim(low / 2, high * 2)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(lambda count, _: bytes_in_words(int(count)))
        return _svg(figure, "top-1 by the bytes that training needs")


Curves = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Mean and deviation of top-1, by name and images a class."""


def sizes(curves: Curves) -> Html:
    """Scores by images a class: a line each in colours of their own."""
    with matplotlib.rc_context(_STYLE):
        figure, axis = _axes(5.2, 3.0)
        _draw_sizes(axis, curves, _SERIES)
        return _svg(figure, "top-1 by images a class")


def save_sizes(curves: Curves, path: Path) -> None:
    """Writes the plot of `sizes` as a PNG with a legend."""
    figure, axis = _axes(6, 4)
    _draw_sizes(axis, curves, [f"C{k}" for k in range(10)])
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _draw_sizes(axis: Any, curves: Curves, colors: Sequence[str]) -> None:
    for k, (name, of) in enumerate(curves.items()):
        means, deviations = ([score[key] for score in of.values()] for key in ("mean", "std"))
        style: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.3, "capsize": 2, "label": name}
        axis.errorbar(list(map(int, of)), means, deviations, color=colors[k % len(colors)], **style)
    ticks = sorted({int(size) for of in curves.values() for size in of})
    axis.set(xlabel="images a class", ylabel="top-1, %", xscale="log")
    axis.minorticks_off()
    axis.set_xticks(ticks, [str(size) for size in ticks])


def dots(names: Sequence[str], columns: Sequence[tuple[Sequence[float], int]], label: str) -> Html:
    """A row a class and a dot a column, joined by a line; columns: values and the number of their colour.

    The axis spans the values, and at least ten per cent.
    """
    rows = np.arange(len(names))
    values = np.array([column for column, _ in columns], dtype=float)
    with matplotlib.rc_context(_STYLE):
        figure, axis = _axes(5.2, 0.75 + (_ROW + 0.03) * len(names))
        if len(columns) > 1:
            axis.hlines(rows, np.nanmin(values, 0), np.nanmax(values, 0), color=_LINE, linewidth=2.5)
        for column, color in reversed(columns):
            axis.scatter(column, rows, s=26, color=_SERIES[color], linewidths=0, zorder=3)
        axis.set_yticks(rows, [name if len(name) <= 22 else f"{name[:21]}…" for name in names])
        axis.tick_params(axis="y", length=0, labelcolor=_INK)
        axis.grid(axis="y", visible=False)
        axis.set(xlabel=label, ylim=(len(names) - 0.5, -0.5))
        if label.endswith("%"):
            low, high = np.nanmin(values), np.nanmax(values)
            margin = max(0.05 * (high - low), 5 - (high - low) / 2)
            axis.set_xlim(max(low - margin, -1), min(high + margin, 101))
        axis.spines["left"].set_visible(False)
        return _svg(figure, f"{label} by class")


def scatter(places: np.ndarray, classes: Sequence[int], is_condensed: np.ndarray) -> Html:
    """The plane of a t-SNE, float [n, 2]: small dots for real images, rings for condensed ones, a colour a class."""
    colors = np.array([_SERIES[label % len(_SERIES)] for label in classes])
    with matplotlib.rc_context(_STYLE | {"axes.grid": False}):
        figure, axis = _axes(5.2, 4.6)
        real = ~is_condensed
        axis.scatter(*places[real].T, s=9, c=colors[real], alpha=0.55, linewidths=0)
        axis.scatter(*places[is_condensed].T, s=34, c=colors[is_condensed], edgecolors=_INK, linewidths=0.9)
        axis.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
        for spine in axis.spines.values():
            spine.set_visible(False)
        return _svg(figure, "t-SNE of the features of condensed and of real images")


def _mark(axis: Any, ratio: float) -> None:
    """Plain numbers at a logarithmic axis over such a range, as many as it has room for."""
    axis.set_major_locator(LogLocator(subs=(1.0,) if ratio > 100 else (1.0, 2.0, 5.0), numticks=7))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _axes(width: float, height: float):
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, text: str) -> Html:
    """The drawing alone, as wide as the page allows; `text` is for those who do not see it."""
    file = io.StringIO()
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of names in scripts that matplotlib has not
        figure.savefig(file, format="svg", transparent=True, metadata=empty)
    width = figure.get_figwidth()
    written = file.getvalue()
    written = written[written.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', written)
    assert box is not None
    head = f'<svg {box[0]} role="img" aria-label="{escape(text)}" style="max-width:{width:.1f}in">'
    body = written[written.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    for drawn, shown in _REPLACED.items():
        body = body.replace(drawn, shown)
    return Html(head + re.sub(r"\n\s*", "\n", body))
