"""What a person looks at: the honest table, the image grid and the loss curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table
from torch import Tensor

from .condensed import CondensedSet

ARMS = {
    "random_soft": "random real, soft labels",
    "random_hard": "random real, hard labels",
    "full": "all real images, hard labels",
}


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
    rows = {"condensed, soft labels": result} | {ARMS[arm]: scores for arm, scores in result["baselines"].items()}
    for name, scores in rows.items():
        cells = (scores[key] for key in ("top1_last", "top1_best", "top5_last"))
        has_spread = result["seeds"] > 1
        table.add_row(name, *(f"{c['mean']:.1f}" + f" ± {c['std']:.1f}" * has_spread for c in cells))
    return table


def _caption(result: dict[str, Any]) -> str:
    sizes = ", ".join(f"{name} {describe_bytes(count)}" for name, count in result["bytes"].items())
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result["seconds"].items())
    return (
        f"top-1 and top-5 in % of {result['test_images']} test images; ± is the deviation over seeds; best is chosen "
        f"on the test images.\nbytes: {sizes}. time: {times}. recipe sha256 {result['recipe_sha256'][:12]}"
    )


def describe_bytes(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    power = min(3, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.1f} {('kB', 'MB', 'GB')[power - 1]}"


def image_grid(condensed: CondensedSet, path: Path, max_classes: int = 20, max_slots: int = 10) -> None:
    """A PNG with a row a class and a column a slot; small images are enlarged without smoothing."""
    images = condensed.images[:max_classes, :max_slots].permute(0, 1, 3, 4, 2).numpy()
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


def loss_curves(losses: Tensor, path: Path) -> None:
    """A PNG of cross-entropy and matching loss over iterations: mean over jobs and the range between them.

    losses: float32 [jobs, T, 3] with total, cross-entropy and weighted matching loss.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.5), constrained_layout=True)
    for axis, column, name in ((axes[0], 1, "cross-entropy"), (axes[1], 2, "weighted matching loss")):
        values = losses[:, :, column].numpy()
        axis.plot(values.mean(0), linewidth=1)
        axis.fill_between(range(values.shape[1]), values.min(0), values.max(0), alpha=0.25, linewidth=0)
        scale = "log" if (values > 0).any() else "linear"  # CIM has no cross-entropy
        axis.set(xlabel="iteration", title=f"{name}, {len(values)} jobs", yscale=scale)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
