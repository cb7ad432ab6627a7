"""What an image folder holds, before anything is made of it: counts, sizes, colours, and files that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..loaders.folder import open_image
from ..loaders.reading import open_file, reading
from ..recipe.settings import Dataset
from ..records import check_names
from .datasets import RealData, Split, load
from .real import square_batches
from .sources import skipped

_LOOKED_AT = 1000
"""Images that are opened at most, spread over the training images."""


@dataclass(frozen=True)
class Survey:
    """A folder's images: counts of training and test images a class, in the classes' order, and what a sample of them
    is like."""

    real: RealData
    train_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    num_opened: int
    """Training images in the sample."""
    short_sides: tuple[int, int, int]
    """Smallest, median and largest short side, in pixels."""
    unread: tuple[str, ...]
    """Why images of the sample cannot be opened, one a file."""


@dataclass(frozen=True)
class Decoded:
    """What a sample of a folder's images is like once decoded, as the evaluation transform sees them."""

    mean: list[float]
    """Of red, green and blue of the training images, in [0, 1]."""
    deviation: list[float]
    unread: tuple[str, ...]
    """Why training and test images of the sample cannot be decoded, one a file."""
    train_counts: tuple[int, ...]
    """Training images a class, without those."""


def survey(data: Path) -> Survey:
    """Looks at a folder of class folders, with or without splits; image files are opened, not decoded.

    Raises ValueError if it is none, or if no image of the sample can be read.
    """
    real = load(Dataset(name="folder", loader="folder"), data)
    if not real.train.files:
        raise ValueError(f"{data} holds packed images; `new` looks at image files")
    check_names(real.classes, f"the classes of {data}")
    sample = _sampled(real.train)
    sides, unread = [], []
    for path in (real.train.files[number] for number in sample):
        try:
            with reading(path), open_file(path) as file:
                sides.append(min(open_image(file).size))
        except ValueError as error:
            unread.append(str(error))
    if not sides:
        raise ValueError(f"no image of {data} can be read; the first: {unread[0]}")
    counts = [np.bincount(split.labels, minlength=len(real.classes)) for split in (real.train, real.test)]
    train, test = (tuple(map(int, of)) for of in counts)
    smallest, middle, largest = np.quantile(sides, (0, 0.5, 1)).round().astype(int).tolist()
    return Survey(real, train, test, len(sample), (smallest, middle, largest), tuple(unread))


def decoded(real: RealData, dataset: Dataset) -> Decoded:
    """Decodes a sample of the training and of the test images."""
    sums, count = torch.zeros(2, 3, dtype=torch.float64), 0
    counts, unread = np.bincount(real.train.labels, minlength=len(real.classes)), dict[str, None]()
    for split in (real.train, real.test):
        taken = split.take(_sampled(split))
        for pixels, _ in square_batches(taken, replace(dataset, on_error="skip"), torch.device("cpu")):
            if split is real.train:
                x = pixels.double() / 255
                sums += torch.stack((x.sum((0, 2, 3)), x.square().sum((0, 2, 3))))
                count += x[:, 0].numel()
        for sample, why in skipped(taken).items():
            unread[why] = None
            counts[taken.labels[sample]] -= split is real.train
    mean, square = sums / max(count, 1)
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    return Decoded(mean.tolist(), deviation.tolist(), tuple(unread), tuple(counts.tolist()))


def _sampled(split: Split) -> np.ndarray:
    """The images that are looked at, ascending: all, or some spread over them."""
    return np.unique(np.linspace(0, max(0, len(split) - 1), min(_LOOKED_AT, len(split))).astype(np.int64))
