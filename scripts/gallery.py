"""A picture of condensed sets beside each other: the first image of every class, a row a run.

    python scripts/gallery.py RUN [RUN ...] --out docs/images/digits.png

All runs must be of the same classes. Where the real images are kept in memory, a row of them stands above. Small images
are enlarged without smoothing, large ones reduced. docs/images/digits.png is made from `fastcondense recover --recipe
METHOD/digits-ipc10` of the methods that it names, docs/images/imagenette.jpg as docs/methods.md says below it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastcondense.data import datasets
from fastcondense.sets.bundle import read_folder

SIDE, GAP, MARGIN = 64, 4, 132
"""Of a tile of small images, between tiles, and left of them for names; in pixels."""
LARGE = 112
"""Side to which larger images are reduced."""


def draw(rows: dict[str, np.ndarray]) -> Image.Image:
    """A row of tiles for each name, of images uint8 [classes, S, S, 3].

    A tile has S (SIDE // S) pixels a side, or LARGE if S is more than SIDE.
    """
    size, count = next(iter(rows.values())).shape[1], len(next(iter(rows.values())))
    side = LARGE if size > SIDE else size * (SIDE // size)
    smoothing = Image.Resampling.BOX if size > SIDE else Image.Resampling.NEAREST
    step = side + GAP
    picture = Image.new("RGB", (MARGIN + count * step, len(rows) * step + GAP), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(16)
    for row, (name, images) in enumerate(rows.items()):
        top = GAP + row * step
        pen.text((GAP, top + step // 2), name, fill="black", font=font, anchor="lm")
        for column, pixels in enumerate(images):
            tile = Image.fromarray(pixels).resize((side, side), smoothing)
            picture.paste(tile, (MARGIN + column * step, top))
    return picture


def gather(runs: list[Path]) -> dict[str, np.ndarray]:
    """The rows: the first training image of each class if the data set is scikit-learn's, and of each run its first
    condensed ones, by method. Other people's images are not shown.

    Raises ValueError for a run of other classes.
    """
    sets = [read_folder(run) for run in runs]
    dataset, classes, rows = sets[0].recipe.dataset, sets[0].condensed.classes, {}
    if dataset.name == "digits":
        train = datasets.load(dataset, None).train
        rows["real"] = train.images[[int(np.flatnonzero(train.labels == label)[0]) for label in range(len(classes))]]
    for run, found in zip(runs, sets, strict=True):
        if found.condensed.classes != classes:
            raise ValueError(f"{run} has other classes than {runs[0]}")
        rows[found.recipe.method] = found.condensed.images[:, 0].permute(0, 2, 3, 1).numpy()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, help="the PNG or JPEG")
    options = parser.parse_args()
    try:
        draw(gather(options.runs)).save(options.out, optimize=True, quality=85)
    except ValueError as error:
        sys.exit(f"gallery: {error}")


if __name__ == "__main__":
    main()
