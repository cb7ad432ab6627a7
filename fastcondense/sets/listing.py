"""What a published image set lists before a pixel is decoded: its classes, and which image is of which class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..loaders.folder import ImageFile

_DECODED_TOGETHER = 256
_MOST_CLASSES = 100_000


def numbers_as_names(count: int) -> tuple[str, ...]:
    """The names of `count` classes that have none. Raises ValueError for a count that only damage gives."""
    if count > _MOST_CLASSES:
        raise ValueError(f"class {count - 1} is beyond the {_MOST_CLASSES} that a set may have")
    return tuple(str(number) for number in range(count))


@dataclass(frozen=True)
class Picture:
    """An image that was asked for: uint8 [3, H, W], its place among those, and what messages call it and its format."""

    place: int
    pixels: Tensor
    name: str
    format: str


@dataclass(frozen=True)
class Listing:
    """Images and their classes."""

    layout: str
    """Layout of the files, in words."""
    names: tuple[str, ...]
    """Names of the set's classes, in its own order; their numbers, "0" "1" ..., if `is_numbered`."""
    labels: np.ndarray
    """int64 [N]: the class of each image among `names`. Within a class, the order of images is that of slots."""
    read: Callable[..., Iterator[Picture]]
    """The images of some ids, int64 [n], in any order; with a second argument all of that size.

    Raises ValueError that names one that cannot be read, or is of another size."""
    said: tuple[str, ...] = ()
    """Remarks that a reader should know."""
    is_numbered: bool = False
    """Whether the set has numbers alone: places in the order of the data set's classes, never their names."""
    stated: tuple[int | None, ...] = ()
    """The number of each class that the names of its files state (class00003_id00000), if all do."""


def decode(
    places: Sequence[int], open_file: Callable[[int], ImageFile], pool: ThreadPoolExecutor, size: int = 0
) -> Iterator[Picture]:
    """The image files that `open_file` gives for these places, decoded by the threads of `pool`, in order.

    Raises ValueError as `check_size` for another size than `size`, if that is not 0, before anything is decoded.
    """

    def picture(place: int) -> Picture:
        file = open_file(place)
        if size:
            check_size(str(file.path), *file.header.size, size)
        pixels = torch.from_numpy(np.array(file.decode())).permute(2, 0, 1)
        return Picture(place, pixels, str(file.path), file.header.format or "unknown format")

    for begin in range(0, len(places), _DECODED_TOGETHER):  # no more than these wait for their turn
        yield from pool.map(picture, places[begin : begin + _DECODED_TOGETHER])


def check_size(name: str, width: int, height: int, size: int) -> None:
    """Raises ValueError for an image of another size: nothing is resized."""
    if (height, width) != (size, size):
        wanted = f"set --dataset.image-size {width} (and --dataset.resize)" if height == width else "cut it to a square"
        raise ValueError(
            f"{name} has {width} x {height} pixels, but dataset.image_size is {size}; nothing is resized here: {wanted}"
        )
