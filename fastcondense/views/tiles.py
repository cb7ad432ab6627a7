"""Tiles of mosaics in a student's views: strips that are permuted (RDED), or one tile that is seen alone (CIM)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..rng import Array, Stream


def strip_bounds(size: int, factor: int) -> np.ndarray:
    """Pixels at which the `factor` strips of `size` pixels begin, and the last one's end: int64 [factor + 1].

    The first size % factor strips are a pixel wider than the others, as in the mosaics themselves.
    """
    starts = [strip[0] for strip in np.array_split(np.arange(size), factor)]
    return np.array([*starts, size], dtype=np.int64)


def shuffle_tiles(images: Tensor, factor: int, stream: Stream, ids: np.ndarray, epoch: int) -> Tensor:
    """Images [N, C, H, W] with their column strips permuted, and their row strips (RDED); a copy.

    Both permutations depend on (stream, epoch, sample) alone; ids: int64 [N], the samples.
    """
    height, width = images.shape[2:]
    column_keys, row_keys, _, _ = stream.words(ids[:, None], epoch, np.arange(factor)[None])
    rows = _permuted(row_keys, height).to(images.device)[:, None, :, None]
    columns = _permuted(column_keys, width).to(images.device)[:, None, None, :]
    return images.gather(2, rows.expand_as(images)).gather(3, columns.expand_as(images))


def _permuted(keys: np.ndarray, size: int) -> Tensor:
    """The pixel that each one comes from, int64 [N, size], if strips are put in the order of their keys [N, factor]."""
    strip = np.repeat(np.arange(keys.shape[1]), np.diff(strip_bounds(size, keys.shape[1])))
    return torch.from_numpy(np.argsort(keys[:, strip], axis=1, kind="stable"))


def pick_tiles(
    factor: int, stream: Stream, ids: Array, epoch: Array, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Top, left, height and width, int64 [N], of the part of each image that a view shows (CIM).

    One of factor^2 tiles, row by row; with probability 1 / factor^2 the whole image. ids, epoch: int64 [N] or ints.
    """
    u_whole, u_tile, _, _ = stream.uniform(ids, epoch)
    row, column = np.divmod(np.floor(u_tile * factor**2).astype(np.int64), factor)
    is_whole, bounds = u_whole * factor**2 < 1, strip_bounds(size, factor)
    parts = (bounds[row], bounds[column], np.diff(bounds)[row], np.diff(bounds)[column])
    top, left, height, width = (
        np.where(is_whole, whole, part) for whole, part in zip((0, 0, size, size), parts, strict=True)
    )
    return top, left, height, width
