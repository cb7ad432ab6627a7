"""What a person looks at: the honest table, the image grid and the loss curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from ..sets.condensed import CondensedSet
from ..sets.loss_bands import LossBand
from ..words import bytes_in_words

ARMS = {
    "random_soft": "random real, soft labels",
    "random_hard": "random real, hard labels",
    "herding_soft": "real by herding, soft labels",
    "herding_hard": "real by herding, hard labels",
    "full": "all real images, hard labels",
}
_IMAGES = {"condensed": "condensed", "random": "random real", "herding": "real by herding", "full": "all real images"}
_VIEWS = {"recipe": "", "plain": ", whole images"}
SIZE_NAMES = {
    "nested": "this set",
    "independent": "made for the size (A)",
    "stacked": "one-image sets (B)",
}
RANKING_SCORES = (
    ("hard_label_recovery", "hard label recovery, less is better (points)", 1),
    ("improvement_over_random", "improvement over random (points)", 1),
    ("improvement_over_random_plain", "the same, whole images (points)", 1),
    ("label_robust_score", "label-robust score", 3),
    ("augmentation_robust_score", "augmentation-robust score", 3),
)


def honest_table(result: dict[str, Any]) -> Table:
    """The condensed set beside its baselines, with the recipe, epochs, seeds, bytes and seconds they belong to."""
    seeds = f"{result['seeds']} seed{'s' if result['seeds'] > 1 else ''} from {result['seed']}"
    table = Table(
        title=f"{result['recipe']}: {result['student']}, ipc {result['ipc']}, {result['epochs']} epochs, {seeds}",
        caption=_caption(result),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("trained on")
    for name in ("top-1 last", "top-1 best", "top-5 last"):
        table.add_column(name, justify="right")
    for row in score_rows(result):
        table.add_row(*row)
    return table


def score_rows(result: dict[str, Any]) -> list[list[str]]:
    """What was trained on, and its top-1 of the last and the best epoch and top-5 of the last, in words."""
    origin, has_spread = "imported" if "origin" in result else "condensed", result["seeds"] > 1
    labels = "hard" if result["labels"] == "hard" else "soft"
    rows = {f"{origin}, {labels} labels": result} | {ARMS[arm]: scores for arm, scores in result["baselines"].items()}
    cells = {name: [scores[key] for key in ("top1_last", "top1_best", "top5_last")] for name, scores in rows.items()}
    return [
        [name, *(f"{c['mean']:.1f}" + f" ± {c['std']:.1f}" * has_spread for c in scores)]
        for name, scores in cells.items()
    ]


def ranking_table(result: dict[str, Any]) -> Table:
    """DD-Ranking's scores below the accuracies that they are made from, for the students' last and best epochs."""
    settings, seeds = result["ranking"], f"{result['seeds']} seed{'s' if result['seeds'] > 1 else ''}"
    rates = ", ".join(map(str, settings["learning_rates"]))
    table = Table(
        title=f"{result['recipe']}: DD-Ranking, {result['student']}, ipc {result['ipc']}, {result['epochs']} epochs, "
        f"{seeds} from {result['seed']}",
        caption=f"top-1 in % of {result['test_images']} test images; ± is the deviation over seeds; best is chosen on "
        f"the test images{f', and so is each learning rate among {rates}' * bool(rates)}.\nscores lie in [0, 1]; 0.269 "
        "says that nothing is lost to all real images with hard labels, and nothing gained over random ones. recipe "
        f"sha256 {result['recipe_sha256'][:12]}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("trained on")
    for name in ("top-1 last", "top-1 best"):
        table.add_column(name, justify="right")

    def add(name: str, last: dict[str, Any], best: dict[str, Any], digits: int = 1) -> None:
        cells = (
            f"{cell['mean']:.{digits}f}" + f" ± {cell['std']:.{digits}f}" * (result["seeds"] > 1)
            for cell in (last, best)
        )
        table.add_row(name, *cells)

    for arm in result["arms"].values():
        more = " (given)" if arm["top1_last"]["lr"] is None else _VIEWS[arm["views"]]
        name = f"{_IMAGES[arm['images']]}, {arm['labels']} labels{more}"
        add(name, arm["top1_last"], arm["top1_best"])
    table.add_section()
    last, best = (result["scores"][f"top1_{epoch}"] for epoch in ("last", "best"))
    for key, name, digits in RANKING_SCORES:
        add(name, last[key], best[key], digits)
    return table


def _caption(result: dict[str, Any]) -> str:
    sizes = ", ".join(f"{name} {bytes_in_words(count)}" for name, count in result["bytes"].items())
    origin = result.get("origin")
    source = f"images: imported from {origin['path']} ({origin['layout']}).\n" if origin else ""
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result["seconds"].items())
    return (
        f"top-1 and top-5 in % of {result['test_images']} test images; ± is the deviation over seeds; best is chosen "
        f"on the test images.\n{source}bytes: {sizes}. time: {times}. recipe sha256 {result['recipe_sha256'][:12]}"
    )


def image_grid(condensed: CondensedSet, path: Path, max_classes: int = 20, max_slots: int = 10) -> None:
    """A PNG with a row a class and a column a slot; small images are enlarged without smoothing."""
    images = condensed.corner(max_classes, max_slots).permute(0, 1, 3, 4, 2).numpy()
    rows, columns, size = images.shape[:3]
    zoom, gap = max(1, 64 // size), 2
    tile = size * zoom + gap
    grid = np.full((rows * tile + gap, columns * tile + gap, 3), 255, dtype=np.uint8)
    for row in range(rows):
        for column in range(columns):
            big = images[row, column].repeat(zoom, 0).repeat(zoom, 1)
            top, left = gap + row * tile, gap + column * tile
            grid[top : top + size * zoom, left : left + size * zoom] = big
    Image.fromarray(grid).save(path)


def size_curve(curves: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """A PNG of scores over images a class: by name and size, mean and deviation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4), constrained_layout=True)
    for name, curve in curves.items():
        sizes, spread = [int(size) for size in curve], list(curve.values())
        means, deviations = [s["mean"] for s in spread], [s["std"] for s in spread]
        axis.errorbar(sizes, means, deviations, marker="o", markersize=3, linewidth=1, capsize=2, label=name)
    axis.set(xlabel="images per class", ylabel="top-1, %", xscale="log", xticks=sizes, xticklabels=sizes)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def loss_curves(band: LossBand, path: Path) -> None:
    """A PNG of cross-entropy and matching loss over iterations: mean over jobs and the range between them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.5), constrained_layout=True)
    for axis, column, name in ((axes[0], 1, "cross-entropy"), (axes[1], 2, "weighted matching loss")):
        low, high = band.low[:, column], band.high[:, column]
        axis.plot(band.middle, band.mean[:, column], linewidth=1)
        axis.fill_between(band.middle, low, high, alpha=0.25, linewidth=0)
        scale = "log" if (high > 0).any() else "linear"  # CIM has no cross-entropy
        axis.set(xlabel="iteration", title=f"{name}, {band.num_jobs} jobs", yscale=scale)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
