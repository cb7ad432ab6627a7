"""replay_crop on the CPU: two passes over each image, columns then rows; the few rows between them stay in cache.

The weights are the Triton kernels' integers over integers (common/filter_gpu.py).
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from ..common.bfloat16 import store, widen
from ..common.threads import inline, kernel, launch, part


@inline
def _unrolled(o, size, flip, roll):
    """The place of output o in the resized window, before the roll and the mirror."""
    o = (o - roll) % size
    return size - 1 - o if flip else o


@inline
def _weigh(o, length, low, high, size, weights):
    """The first source position of output o; fills weights [taps] of it and of those that follow."""
    reach, center = 2 * max(length, size), (2 * o + 1) * length
    first = max((max(center - reach - size, -2 * size) + 2 * size) // (2 * size), low)
    total = 0
    for j in range(len(weights)):
        p = first + j
        overlap = max(reach - abs((2 * p + 1) * size - center), 0) if p < high else 0
        total += overlap
        weights[j] = np.float32(overlap)
    for j in range(len(weights)):
        weights[j] /= np.float32(max(total, 1))
    return first


@part
def _paint(image, window, begin_y, end_y, begin_x, end_x, share, is_added, gain, offset, output):
    """Writes, or adds, `share` of a view of image [C, H, W] inside a box of its output [size, size, C]."""
    top, left, rows, columns, flip = window[0], window[1], window[2], window[3], window[4] != 0
    channels, height, width = image.shape
    size = len(output)
    low_y, high_y = max(-top, 0), min(rows, height - top)
    low_x, high_x = max(-left, 0), min(columns, width - left)
    taps_y, taps_x = -(-2 * max(rows, size) // size), -(-2 * max(columns, size) // size)
    length = max(high_x - low_x, 0) + taps_x  # of a channel in `line`, which ends in zeros
    span = (end_x - begin_x) * channels

    at = np.empty(span, np.uint32)
    weights_x = np.empty((taps_x, span), np.float32)
    gains, bases = np.empty(span, np.float32), np.empty(span, np.float32)
    weights = np.empty(taps_x, np.float32)
    for i in range(end_x - begin_x):
        first = _weigh(_unrolled(begin_x + i, size, flip, window[6]), columns, low_x, high_x, size, weights)
        for c in range(channels):
            k = i * channels + c
            at[k] = c * length + min(first, max(high_x, low_x)) - low_x
            weights_x[:, k] = weights
            gains[k], bases[k] = gain[c], offset[c]

    line = np.zeros(channels * length, np.float32)
    ring = np.empty((taps_y, span), np.float32)
    total = np.empty(span, np.float32)
    weights = np.empty(taps_y, np.float32)
    done = 0  # source rows before it have been seen
    for o in range(size):
        y = (o + window[5]) % size
        if y < begin_y or y >= end_y:
            continue
        first = _weigh(o, rows, low_y, high_y, size, weights)
        for p in range(max(first, done), min(first + taps_y, high_y)):
            for c in range(channels):
                source = image[c, top + p, left + low_x : left + high_x]
                target = line[c * length : (c + 1) * length]
                for x in range(len(source)):
                    target[x] = np.float32(source[x])
            row = ring[p % taps_y]
            row[:] = 0
            for j in range(taps_x):
                shifted, weight_x = line[j:], weights_x[j]
                for k in range(span):
                    row[k] += weight_x[k] * shifted[at[k]]
            done = p + 1
        total[:] = 0
        for i in range(taps_y):
            weight = weights[i] * share
            if weight != 0:
                row = ring[(first + i) % taps_y]
                for k in range(span):
                    total[k] += weight * row[k]
        out = output[y].reshape(-1)[begin_x * channels : end_x * channels]
        for k in range(span):
            store(out, k, total[k] * gains[k] + (widen(out[k]) if is_added else bases[k]))


@kernel
def replay_kernel(images, ids, windows, partners, partner_windows, boxes, shares, is_mixup, gain, offset, output):
    # images: uint8 [M, C, H, W]; windows: int32 [B, 7]; boxes: int64 [B, 4]; output: [B, size, size, C]
    zero, one, size = np.int64(0), np.float32(1), output.shape[1]
    for b in prange(len(output)):
        top, bottom, left, right = boxes[b]
        if is_mixup:
            top, bottom, left, right = zero, size, zero, size
        for r in range(5):  # above, below, left and right of the box, and the box: one call, as each would be compiled
            begin_y = (zero, bottom, top, top, top)[r]
            end_y = (size if is_mixup else top, size, bottom, bottom, bottom)[r]
            begin_x = (zero, zero, zero, right, left)[r]
            end_x = (size, size, left, size, right)[r]
            is_partner = r == 4
            is_added = is_mixup and is_partner
            share = one - shares[b] if is_added else shares[b]
            if begin_y < end_y and begin_x < end_x:
                image = images[partners[b] if is_partner else ids[b]]
                window = partner_windows[b] if is_partner else windows[b]
                _paint(image, window, begin_y, end_y, begin_x, end_x, share, is_added, gain, offset, output[b])


def replay_crop(
    images: Tensor, ids: Tensor, windows: Tensor, size: int, gain: Tensor, offset: Tensor, partners: Tensor | None,
    partner_windows: Tensor | None, boxes: Tensor | None, share: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """`replay_crop` of checked arguments, all contiguous."""
    # mixup adds two views, in float32; others are rounded where they are made
    made = torch.bfloat16 if dtype == torch.bfloat16 and share is None else torch.float32
    output = torch.empty(len(ids), size, size, images.shape[1], dtype=made)
    launch(
        replay_kernel, images, ids, windows, ids if partners is None else partners,
        windows if partner_windows is None else partner_windows,
        torch.tensor((size, size, 0, 0)).repeat(len(ids), 1) if boxes is None else boxes.long().clamp(0, size),
        torch.ones(len(ids)) if share is None else share, share is not None, gain, offset, output,
    )  # fmt: skip
    return output.permute(0, 3, 1, 2).to(dtype)
