"""A picture of condensed sets beside each other: the first image of every class, a row a run, real images above.

    python scripts/gallery.py RUN [RUN ...] --out docs/images/digits.png

All runs must be of the same classes. Images are enlarged without smoothing. docs/images/digits.png is made from
`fastcondense recover --recipe METHOD/digits-ipc10` of the methods that it names.
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
"""Of a tile, between tiles, and left of them for names; in pixels."""


def draw(rows: dict[str, np.ndarray]) -> Image.Image:
    """Images uint8 [classes, S, S, 3] by name, S up to SIDE: tiles of S (SIDE // S) pixels, a row a name."""
    size, count = next(iter(rows.values())).shape[1], len(next(iter(rows.values())))
    zoom = SIDE // size
    step = size * zoom + GAP
    picture = Image.new("RGB", (MARGIN + count * step, len(rows) * step + GAP), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(16)
    for row, (name, images) in enumerate(rows.items()):
        top = GAP + row * step
        pen.text((GAP, top + step // 2), name, fill="black", font=font, anchor="lm")
        for column, pixels in enumerate(images):
            tile = Image.fromarray(pixels.repeat(zoom, 0).repeat(zoom, 1))
            picture.paste(tile, (MARGIN + column * step, top))
    return picture


def gather(runs: list[Path]) -> dict[str, np.ndarray]:
    """The rows: the first training image of each class, and of each run its first condensed ones, by method.

    Raises ValueError for a run of other classes, or of a data set whose images are not kept in memory.
    """
    sets = [read_folder(run) for run in runs]
    dataset, classes = sets[0].recipe.dataset, sets[0].condensed.classes
    train = datasets.load(dataset, None).train
    if train.images is None:
        raise ValueError(f"the images of {dataset.name} are files; a gallery needs a data set in memory")
    first = [int(np.flatnonzero(train.labels == label)[0]) for label in range(len(classes))]
    rows = {"real": train.images[first]}
    for run, found in zip(runs, sets, strict=True):
        if found.condensed.classes != classes:
            raise ValueError(f"{run} has other classes than {runs[0]}")
        rows[found.recipe.method] = found.condensed.images[:, 0].permute(0, 2, 3, 1).numpy()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, help="the PNG")
    options = parser.parse_args()
    try:
        draw(gather(options.runs)).save(options.out, optimize=True)
    except ValueError as error:
        sys.exit(f"gallery: {error}")


if __name__ == "__main__":
    main()
