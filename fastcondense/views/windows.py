"""Window tables: which part of which image is seen, in which epoch or iteration.

A table is int32 [N, 7] with columns top, left, height, width, flip, roll_y, roll_x: take the window, resize it, mirror
it if flip, then roll it circularly. It is a pure function of (seed, purpose, epoch or iteration, sample id). The
arithmetic uses only +, -, *, /, sqrt and rounding, which IEEE 754 fixes, so all machines agree bit for bit.
"""

from __future__ import annotations

import math

import numpy as np

from ..recipe.shared import Views
from ..rng import Array, Stream

TOP, LEFT, HEIGHT, WIDTH, FLIP, ROLL_Y, ROLL_X = range(7)
_ATTEMPTS = 10  # torchvision's RandomResizedCrop tries as often before it falls back


def _exp(x: Array) -> Array:
    """e^x for |x| < 4 from + and * alone, relative error below 2e-14: Taylor series of x/64, squared six times."""
    y = x * (1 / 64)
    result = y * 0 + 1.0
    for n in range(10, 0, -1):
        result = result * y * (1 / n) + 1.0
    for _ in range(6):
        result = result * result
    return result


def _integer(uniform: Array, count: Array) -> Array:
    """Uniform over range(count); a 32-bit uniform number times a count is exact in float64."""
    return np.floor(uniform * count)


def windows(
    stream: Stream,
    views: Views,
    ids: Array,
    epoch: Array,
    height: Array,
    width: Array,
    scale_low: Array | None = None,
) -> np.ndarray:
    """Window table of the samples ``ids`` in ``epoch`` (for recover: of a batch in an iteration).

    ids, epoch: int64 arrays or ints, broadcast to [N]. height, width: sizes of the source images, ints or [N].
    scale_low: lower bound of the crop's area share, float64 [N], in place of ``views.crop_scale[0]`` (CDA).
    The crop follows torchvision's RandomResizedCrop.get_params: area and log-ratio uniform, ten attempts, central
    fallback. Returns int32 [N, 7].
    """
    u_flip, u_roll_y, u_roll_x, _ = stream.uniform(ids, epoch, _ATTEMPTS)
    zero = u_flip * 0
    height, width = zero + height, zero + width
    if views.padding:
        top, left = (_integer(u, 2 * views.padding + 1) - views.padding for u in stream.uniform(ids, epoch, 0)[:2])
        crop_height, crop_width = height, width
    else:
        top, left, crop_height, crop_width = _resized_crop(stream, views, ids, epoch, height, width, scale_low)
    low, count = views.roll[0], views.roll[1] - views.roll[0] + 1
    roll = low + _integer(u_roll_y, count), low + _integer(u_roll_x, count)
    return np.stack((top, left, crop_height, crop_width, u_flip < views.flip, *roll), -1).astype(np.int32)


def _resized_crop(
    stream: Stream, views: Views, ids: Array, epoch: Array, height: Array, width: Array, scale_low: Array | None
) -> tuple[Array, Array, Array, Array]:
    # height, width: float64 [N]; all results float64 [N] with integer values
    low, high = views.crop_scale
    low = height * 0 + (low if scale_low is None else scale_low)
    ratio_low, ratio_high = views.crop_ratio
    log_span = math.log(ratio_high / ratio_low)

    # Fallback: the largest central window whose ratio is allowed.
    narrow, wide = width < height * ratio_low, width > height * ratio_high
    crop_height = np.where(narrow, np.round(width * (1 / ratio_low)), height)
    crop_width = np.where(wide, np.round(height * ratio_high), width)
    top, left = np.floor((height - crop_height) * 0.5), np.floor((width - crop_width) * 0.5)

    for attempt in reversed(range(_ATTEMPTS)):  # backwards: the first attempt that fits is written last and stays
        u_area, u_ratio, u_top, u_left = stream.uniform(ids, epoch, attempt)
        area = height * width * (low + u_area * (high - low))
        ratio = ratio_low * _exp(u_ratio * log_span)
        w, h = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        crop_height, crop_width = np.where(fits, h, crop_height), np.where(fits, w, crop_width)
        top = np.where(fits, _integer(u_top, height - h + 1), top)
        left = np.where(fits, _integer(u_left, width - w + 1), left)
    return top, left, crop_height, crop_width
