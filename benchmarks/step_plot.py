"""The plot of README: the time of a recover step as published and ours, relative to the network without matching."""

from __future__ import annotations

from pathlib import Path

from described_svg import drawn
from result_files import Result, newest, together

Figures = dict[str, dict[str, float]]
"""Label of a step -> variant -> time relative to the plain step."""
VARIANTS = {"published": "#9aa5b1", "compiled": "#d1a054", "ours-fp32": "#2f7d5b", "ours-bf16": "#1f5f8b"}


def figures(results: list[Result]) -> Figures:
    """Of the newest recover steps of every device, statistic and shape."""

    def key(result: Result) -> tuple[str, ...]:
        return result.device, result["statistics"], result["network"], str(result.shape)

    found = [r for r in results if r.benchmark == "recover" and r.get("statistics") and r.get("ratio_to_plain")]
    made: Figures = {}
    for result in newest(together(found, key), lambda result: (*key(result), result["variant"])):
        images, _, side, _ = result.shape
        label = f"{result['statistics']}, {images} x {side} px\n{result.device}"
        if result["variant"] in VARIANTS:
            made.setdefault(label, {})[result["variant"]] = result["ratio_to_plain"]
    return {label: dict(sorted(made[label].items())) for label in sorted(made)}


def draw(wanted: Figures, path: Path) -> None:
    """Writes the plot as SVG."""
    chosen = [name for name in VARIANTS if any(name in bars for bars in wanted.values())]
    with drawn(path, wanted, (8, 0.7 + 0.75 * max(1, len(wanted)))) as axes:
        height = 0.8 / max(1, len(chosen))
        for k, name in enumerate(chosen):
            places = [(row, bars[name]) for row, bars in enumerate(wanted.values()) if name in bars]
            bars = axes.barh(
                [row + k * height for row, _ in places], [x for _, x in places], height, color=VARIANTS[name]
            )
            axes.bar_label(bars, fmt="%.2f", padding=2)
            bars.set_label(name)
        axes.set_yticks([row + height * (len(chosen) - 1) / 2 for row in range(len(wanted))], list(wanted))
        axes.invert_yaxis()
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_xlabel("time of a recover step; 1: the unfused network without matching, same run")
        if chosen:
            axes.legend(frameon=False, loc="lower right")
