"""Pixels to a resized square, in numba: to the bit what Pillow's crop and bilinear resize give.

Pillow's resize is antialiased (a triangle as wide as the scale), in two passes with weights of 22 bits and a rounding
to 8 bits between them: columns first, but rows first where much more of the height goes than of the width, as from
Pillow 13 on (where an older one differs by one level).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from .source import Centered, Cut

TOP, LEFT, HEIGHT, WIDTH, FLIP, ROLL_Y, ROLL_X, OUT_HEIGHT, OUT_WIDTH, OUT_TOP, OUT_LEFT = range(11)
NUM_COLUMNS = 11
"""Columns of a table of cuts: a window, the size in pixels to which it is resized, where in that the square begins."""
_BITS = 22
_HALF = 1 << (_BITS - 1)

compiled: Callable[..., Any] = numba.njit(cache=True, nogil=True)


def resized(height: int, width: int, resize: int) -> tuple[int, int]:
    """Height and width after the short side is resized to `resize`, rounded as torchvision's Resize does."""
    long = int(resize * max(height, width) / min(height, width))
    return (long, resize) if width <= height else (resize, long)


def central(have: int, size: int) -> int:
    """The first of the central `size` of `have` pixels; negative if there are fewer. As torchvision's CenterCrop."""
    # torchvision rounds a cut to even, and pads the smaller half first where the image is too small
    return round((have - size) / 2) if have >= size else -((size - have) // 2)


def table_of_cuts(cut: Cut, ids: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """int32 [N, 11], columns as above: how each of the samples is cut."""
    table = np.zeros((len(ids), NUM_COLUMNS), dtype=np.int32)
    if isinstance(cut, Centered):
        for row, height, width in zip(table, heights.tolist(), widths.tolist(), strict=True):
            high, wide = resized(height, width, cut.resize)
            row[2:] = height, width, 0, 0, 0, high, wide, central(high, cut.size), central(wide, cut.size)
    elif len(ids):
        table[:, :7] = cut.windows_of(ids, heights, widths)
        table[:, 7:9] = cut.size
    return table


@compiled
def _weights(length: int, resized: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First pixel read, number and weights of each of `count` pixels from `start` on, of `length` resized to `resized`.

    The number is 0 outside, where it is black.
    """
    scale = length / resized
    support = max(scale, 1.0)
    first, number = np.zeros(count, np.int64), np.zeros(count, np.int64)
    exact = np.empty(2 * int(np.ceil(support)) + 1)
    weights = np.empty((count, len(exact)), np.int32)
    for k in range(max(0, -start), min(count, resized - start)):
        center = (start + k + 0.5) * scale
        first[k] = max(0, int(center - support + 0.5))
        number[k] = min(length, int(center + support + 0.5)) - first[k]
        total = 0.0
        for t in range(number[k]):
            exact[t] = max(0.0, 1.0 - abs((t + first[k] - center + 0.5) * (1.0 / support)))
            total += exact[t]
        for t in range(number[k]):
            weights[k, t] = int(0.5 + exact[t] / total * (1 << _BITS))
    return first, number, weights


@compiled
def cut_square(pixels: np.ndarray, row: np.ndarray, square: np.ndarray) -> None:
    """One row of a table of cuts, applied to pixels uint8 [H, W, 3], into square uint8 [S, S, 3]."""
    top, left, height, width = row[TOP], row[LEFT], row[HEIGHT], row[WIDTH]
    y0, y1 = max(top, 0), min(top + height, pixels.shape[0])
    x0, x1 = max(left, 0), min(left + width, pixels.shape[1])
    if y1 - y0 == height and x1 - x0 == width:
        _resize(pixels, top, left, row, square)
    else:
        canvas = np.zeros((height, width, 3), np.uint8)  # over the edge it is black
        if y0 < y1 and x0 < x1:
            canvas[y0 - top : y1 - top, x0 - left : x1 - left] = pixels[y0:y1, x0:x1]
        _resize(canvas, 0, 0, row, square)


@compiled
def _across(line: np.ndarray, at: int, taps: Any, columns: np.ndarray, into: np.ndarray) -> None:
    """Resamples RGB pixels uint8 [3 W] from the pixel `at` on, into the places `columns` of `into`."""
    first, number, weights = taps
    for x in range(len(columns)):
        red = green = blue = _HALF
        begin, to = 3 * (at + first[x]), columns[x]
        if number[x] == 2:  # enlarging, as small windows are
            one, two = weights[x, 0], weights[x, 1]
            red += one * line[begin] + two * line[begin + 3]
            green += one * line[begin + 1] + two * line[begin + 4]
            blue += one * line[begin + 2] + two * line[begin + 5]
        else:
            for t in range(number[x]):
                weight = weights[x, t]
                red += weight * line[begin]
                green += weight * line[begin + 1]
                blue += weight * line[begin + 2]
                begin += 3
        into[to], into[to + 1], into[to + 2] = red >> _BITS, green >> _BITS, blue >> _BITS


@compiled
def _down(lines: np.ndarray, y: int, weights: np.ndarray, sums: np.ndarray, into: np.ndarray) -> None:
    """Sums lines uint8 [H, n] from line y on, by their weights, into uint8 [n]; sums: int32 [n], any."""
    sums[:] = _HALF
    for t in range(len(weights)):
        weight, line = weights[t], lines[y + t]
        for x in range(len(sums)):
            sums[x] += weight * np.int32(line[x])
    for x in range(len(sums)):
        into[x] = sums[x] >> _BITS


@compiled
def _resize(pixels: np.ndarray, top: int, left: int, row: np.ndarray, square: np.ndarray) -> None:
    size, height, width = square.shape[0], row[HEIGHT], row[WIDTH]
    taps = _weights(width, row[OUT_WIDTH], row[OUT_LEFT], size)
    first, number, weights = _weights(height, row[OUT_HEIGHT], row[OUT_TOP], size)
    columns = np.arange(size)[::-1] if row[FLIP] else np.arange(size)
    columns = 3 * ((columns + row[ROLL_X]) % size)
    lines = pixels.reshape(pixels.shape[0], 3 * pixels.shape[1])
    if height > row[OUT_HEIGHT] and height - row[OUT_HEIGHT] > 2 * (width - row[OUT_WIDTH]):
        lines = lines[top:, 3 * left : 3 * (left + width)]
        line, sums = np.empty(3 * width, np.uint8), np.empty(3 * width, np.int32)
        for y in range(size):
            _down(lines, first[y], weights[y, : number[y]], sums, line)
            _across(line, 0, taps, columns, square[(y + row[ROLL_Y]) % size].reshape(3 * size))
        return
    narrow, sums = np.empty((height, 3 * size), np.uint8), np.empty(3 * size, np.int32)
    for y in range(first[number > 0].min(), (first + number).max()):
        _across(lines[top + y], left, taps, columns, narrow[y])
    for y in range(size):
        _down(narrow, first[y], weights[y, : number[y]], sums, square[(y + row[ROLL_Y]) % size].reshape(3 * size))
