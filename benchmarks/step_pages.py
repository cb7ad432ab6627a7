"""A recover step as a page, which says where its time goes, and as README's plot, from result lines (results.py)."""

from __future__ import annotations

import math
from pathlib import Path

from pages import drawn, markdown
from pandas import DataFrame
from results import newest, sources
from throughput import MISSING, NOT_MEASURED, STEP, figure, groups, short

COLORS = {"published": "#9aa5b1", "compiled": "#d1a054", "ours-fp32": "#2f7d5b", "ours-bf16": "#1f5f8b"}


def profile(lines: DataFrame) -> str:
    """The page that says where the time of a recover step goes, the longest part first."""
    pages = [
        "# Where the time of a recover step goes",
        "Written by `benchmarks/tables.py` from `bench recover --profile`.",
    ]
    found = lines[(lines["benchmark"] == "recover") & (lines["what"] == "profile")]
    group = [*STEP, "dtype"]
    for (device, statistics, network, shape, dtype), parts in groups(newest(found, group), group):
        parts = parts.sort_values("share_of_step", ascending=False, kind="stable")
        rows = [
            (
                *(name, f"{part['median_ms']:.3g}", f"{100 * part['share_of_step']:.1f}"),
                MISSING if math.isnan(part["bytes"]) else f"{part['bytes'] / 1e9:.3g}",
                *(figure(part["GB/s"], 0), figure(100 * part["share_of_copy"], 0)),
            )
            for name, part in parts.iterrows()
        ]
        head = ("part", "ms", "% of the step", "GB", "GB/s", "% of a copy")
        pages += [
            f"## {statistics}, {short(network)}, {shape}, {dtype}, {device}",
            f"{parts['step_ms'].iloc[0]} ms a step without the profiler.",
            f"{markdown(head, rows)}\n\n{sources(parts)}",
        ]
    return "\n\n".join(pages if len(found) else [*pages, NOT_MEASURED]) + "\n"


def bars(lines: DataFrame) -> dict[str, dict[str, float]]:
    """What the plot shows: label of a step -> variant -> time relative to the plain step."""
    made: dict[str, dict[str, float]] = {}
    found = lines[(lines["benchmark"] == "recover") & lines["statistics"].notna() & lines["ratio_to_plain"].notna()]
    for (device, statistics, _, shape), steps in groups(newest(found, STEP), STEP):
        chosen = {name: ratio for name, ratio in steps["ratio_to_plain"].items() if name in COLORS}
        label = f"{statistics}, {shape[0]} x {shape[2]} px\n{device}"
        made[label] = made.get(label, {}) | dict(sorted(chosen.items()))
    return {label: made[label] for label in sorted(made) if made[label]}


def draw(wanted: dict[str, dict[str, float]], path: Path) -> None:
    """Writes the plot of README as SVG: a step as published and ours, relative to the network without matching."""
    with drawn(path, wanted, (8, 0.7 + 0.75 * max(1, len(wanted)))) as axes:
        shown = DataFrame(wanted).T.reindex(
            columns=[name for name in COLORS if any(name in one for one in wanted.values())]
        )
        if len(shown):
            shown.plot.barh(ax=axes, color=COLORS, width=0.8)
            for container in axes.containers:
                axes.bar_label(container, fmt="%.2f", padding=2)
            axes.legend(frameon=False, loc="lower right")
        axes.invert_yaxis()
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_xlabel("time of a recover step; 1: the unfused network without matching, same run")
