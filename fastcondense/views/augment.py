"""Differentiable siamese augmentation of normalised images (Zhao and Bilen, ICML'21), as IDC and CIM use it.

A table float32 [..., COLUMNS] says what is done to each image, or in a single row to all of a batch ("siamese"). It is
a pure function of (stream, counters). An operation that is left out, or not the drawn one, has its neutral values.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.crop import crop
from ..recipe.shared import Operation
from ..rng import Array, Stream

FLIP, BRIGHTNESS, SATURATION, CONTRAST, SHIFT_Y, SHIFT_X, SCALE_Y, SCALE_X, ANGLE = range(9)
CUT_TOP, CUT_BOTTOM, CUT_LEFT, CUT_RIGHT = range(9, 13)
COLUMNS = 13

OPERATIONS: tuple[Operation, ...] = get_args(Operation)
GEOMETRIC: tuple[Operation, ...] = ("crop", "scale", "rotate")

_BRIGHTNESS = 0.5  # added: -0.5 ... 0.5
_SATURATION = 2.0  # times 0 ... 2
_CONTRAST = (0.5, 1.5)
_SHIFT = 0.125  # of the side
_SCALE = 1.2  # 1 / 1.2 ... 1.2
_ANGLE = math.radians(15)
_CUT = 0.5  # of the side


def augmentations(
    stream: Stream,
    operations: Collection[str],
    ids: Array,
    epoch: Array,
    size: int,
    geometric_ids: Array | None = None,
) -> Tensor:
    """Augmentations of the samples `ids` in `epoch`, or of the batch or job `ids` in an iteration: [..., COLUMNS].

    operations: any of OPERATIONS. Of crop, scale and rotate, one of those that are listed is drawn for each row.
    ids, epoch: int64 arrays or ints, broadcast to [...]. size: the images' side. geometric_ids: counters that decide,
    in place of the ids, which geometric operation is done: a batch's number makes it the batch's, as in the published
    code; by default it is each sample's, which does not depend on the batches.

    flip: with probability 1/2; brightness: -0.5 to 0.5, added; saturation: 0 to 2 times the distance from a pixel's
    mean over the channels; contrast: 0.5 to 1.5 times the distance from the image's mean; crop: whole pixels down and
    right, up to an eighth of the side; scale: 1 / 1.2 to 1.2 for each axis of the sampling grid, above 1 shrinks;
    rotate: up to 15 degrees, in radians; cutout: a square of half the side, its centre uniform, cut at the edges.
    On the host. Raises ValueError for an unknown operation.
    """
    if unknown := [name for name in operations if name not in OPERATIONS]:
        raise ValueError(f"augmentations are any of {', '.join(OPERATIONS)}, got {unknown[0]!r}")
    u_flip, u_brightness, u_saturation, u_contrast = stream.uniform(ids, epoch, 0)
    u_shift_y, u_shift_x, u_scale_y, u_scale_x = stream.uniform(ids, epoch, 1)
    u_angle, u_cut_y, u_cut_x, _ = stream.uniform(ids, epoch, 2)
    u_drawn = stream.uniform(ids if geometric_ids is None else geometric_ids, epoch, 3)[0]
    listed = [name for name in GEOMETRIC if name in operations]
    drawn = np.floor(u_drawn * len(listed))

    table = np.zeros((*u_flip.shape, COLUMNS))
    table[..., [SATURATION, CONTRAST, SCALE_Y, SCALE_X]] = 1
    if "flip" in operations:
        table[..., FLIP] = u_flip < 0.5
    if "brightness" in operations:
        table[..., BRIGHTNESS] = _BRIGHTNESS * (2 * u_brightness - 1)
    if "saturation" in operations:
        table[..., SATURATION] = _SATURATION * u_saturation
    if "contrast" in operations:
        table[..., CONTRAST] = _CONTRAST[0] + (_CONTRAST[1] - _CONTRAST[0]) * u_contrast
    geometric = {
        "crop": {SHIFT_Y: _shift(u_shift_y, size), SHIFT_X: _shift(u_shift_x, size)},
        "scale": {SCALE_Y: _scale(u_scale_y), SCALE_X: _scale(u_scale_x)},
        "rotate": {ANGLE: _ANGLE * (2 * u_angle - 1)},
    }
    for which, name in enumerate(listed):
        for column, values in geometric[name].items():
            table[..., column] = np.where(drawn == which, values, table[..., column])
    if "cutout" in operations:
        side = math.floor(_CUT * size + 0.5)
        for column, u in ((CUT_TOP, u_cut_y), (CUT_LEFT, u_cut_x)):
            begin = np.floor(u * (size + 1 - side % 2)) - side // 2
            table[..., column], table[..., column + 1] = np.clip(begin, 0, size), np.clip(begin + side, 0, size)
    return torch.from_numpy(table).float()


def _shift(u: Array, size: int) -> Array:
    reach = math.floor(_SHIFT * size + 0.5)
    return np.floor(u * (2 * reach + 1)) - reach


def _scale(u: Array) -> Array:
    return 1 / _SCALE + (_SCALE - 1 / _SCALE) * u


def augment(images: Tensor, table: Tensor, operations: Collection[str]) -> Tensor:
    """Augmented images: brightness, saturation, contrast, flip, the geometric operation, then cutout.

    images: normalised, floating [N, C, S, S]; table: float32 [N, COLUMNS], or [1, COLUMNS] for all of them alike, on
    the same device, made with the same `operations`. Returns [N, C, S, S] of the images' dtype. Zeros, the mean colour,
    are seen beyond the edges and in the square that is cut out. Differentiable in the images, and nothing is read by
    the host of a GPU. There the gradient through scale and rotate sums in no fixed order; all others are reproducible.
    """
    size = images.shape[-1]
    row = table.to(images.dtype)[:, :, None, None, None]
    x = images
    if "brightness" in operations:
        x = x + row[:, BRIGHTNESS]
    if "saturation" in operations:
        x = x.mean(1, keepdim=True).lerp(x, row[:, SATURATION])
    if "contrast" in operations:
        x = x.mean((1, 2, 3), keepdim=True).lerp(x, row[:, CONTRAST])
    if "flip" in operations or "crop" in operations:
        x = crop(x, _windows(table, size), size, dtype=x.dtype)
    if "scale" in operations or "rotate" in operations:
        x = _warp(x, table)
    if "cutout" in operations:
        x = x.masked_fill(_cut_out(table, size), 0)
    return x


def _windows(table: Tensor, size: int) -> Tensor:
    """Windows that mirror, then shift, as `crop` takes them: it mirrors last, so a mirrored shift is reversed."""
    flip, down, right = table[:, FLIP], table[:, SHIFT_Y], table[:, SHIFT_X]
    zero = torch.zeros_like(flip)
    side = zero + size
    return torch.stack((-down, torch.where(flip > 0, right, -right), side, side, flip, zero, zero), 1).int()


def _warp(x: Tensor, table: Tensor) -> Tensor:
    """Scaled and rotated about the centre, bilinearly; images whose row does neither are kept as they are."""
    wide, high, angle = table[:, SCALE_X], table[:, SCALE_Y], table[:, ANGLE]
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    theta = torch.stack((wide * cos, -sin, zero, sin, high * cos, zero), 1).view(-1, 2, 3).to(x.dtype)
    grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    is_kept = (wide == 1) & (high == 1) & (angle == 0)
    return torch.where(is_kept[:, None, None, None], x, F.grid_sample(x, grid, align_corners=False))


def _cut_out(table: Tensor, size: int) -> Tensor:
    """Mask of the squares that are cut out, bool [N, 1, S, S]."""
    at = torch.arange(size, device=table.device)
    rows = (at >= table[:, CUT_TOP, None]) & (at < table[:, CUT_BOTTOM, None])
    columns = (at >= table[:, CUT_LEFT, None]) & (at < table[:, CUT_RIGHT, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]
