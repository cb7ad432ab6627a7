"""replay_crop on the CPU: a source row is resampled along itself, once, and a few of them make an output row.

The weights are the Triton kernels' integers over integers (common/filter_gpu.py).
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from ..common.bfloat16 import store, widen
from ..common.memory import memory
from ..common.resample_cpu import STEP, fill_blocks, num_block_taps, num_blocks, put_together, resample
from ..common.threads import kernel, launch_at, part
from ..common.vectors import LANES, fused

ZERO = np.int64(0)


@part
def _list_taps(targets, length, low, high, size, is_mirrored, position, weight):
    """Fills position, counted from `low`, and weight [taps, targets]: outputs from `targets` on, before the roll."""
    reach = 2 * max(length, size)
    for i in range(position.shape[1]):
        o = size - 1 - (targets + i) if is_mirrored else targets + i
        center = (2 * o + 1) * length
        first = max((max(center - reach - size, -2 * size) + 2 * size) // (2 * size), low)
        total = 0
        for j in range(len(position)):
            p = first + j
            overlap = max(reach - abs((2 * p + 1) * size - center), 0) if p < high else 0
            total += overlap
            position[j, i], weight[j, i] = p - low, overlap
        for j in range(len(position)):
            weight[j, i] /= np.float32(max(total, 1))


@part
def _add_pixels(rows, begin, gain, pixels):
    """pixels[i, c] += rows[c, begin + i] * gain[c]."""
    for i in range(len(pixels)):
        for c in range(gain.size):
            store(pixels[i], c, fused(rows[c, begin + i], gain[c], widen(pixels[i, c])))


@part
def _paint(image, window, begin_y, end_y, begin_x, end_x, share, is_added, gain, offset, output):
    """Writes, or adds, `share` of a view of image [C, H, W] inside a box of its output [size, size, C]."""
    top, left, rows, columns, is_mirrored = (
        np.int64(window[0]), np.int64(window[1]), np.int64(window[2]), np.int64(window[3]), window[4] != 0
    )  # fmt: skip
    channels, height, width = image.shape
    size = np.int64(len(output))
    roll = np.int64(window[6] % size)
    low_y, high_y = max(-top, ZERO), min(rows, height - top)
    low_x, high_x = max(-left, ZERO), min(columns, width - left)
    taps_y, taps_x = -(-2 * max(rows, size) // size), -(-2 * max(columns, size) // size)

    targets, end = (begin_x, end_x) if roll == 0 else (0, size)  # before the roll
    blocks = num_blocks(end - targets)
    position, weight = np.empty((taps_x, end - targets), np.int64), np.empty((taps_x, end - targets), np.float32)
    first, length = np.empty(blocks, np.int64), np.empty(blocks, np.int64)
    lanes = np.zeros((blocks, num_block_taps(taps_x, columns, size), LANES), np.float32)
    _list_taps(targets, columns, low_x, high_x, size, is_mirrored, position, weight)
    fill_blocks(position, weight, taps_x, first, length, lanes)

    lines = np.zeros((channels, max(high_x - low_x, ZERO) + STEP), np.float32)
    ring = np.empty((taps_y, channels, blocks * LANES), np.float32)
    total = np.empty((channels, blocks * LANES), np.float32)
    place, weights = np.empty((taps_y, 1), np.int64), np.empty((taps_y, 1), np.float32)
    done = 0  # source rows before it have been seen
    for o in range(size):
        y = (o + window[5]) % size
        if y < begin_y or y >= end_y:
            continue
        _list_taps(o, rows, low_y, high_y, size, False, place, weights)
        origin = place[0, 0] + low_y
        for p in range(max(origin, done), min(origin + taps_y, high_y)):
            for c in range(channels):
                source, line = image[c, top + p, left + low_x : left + high_x], lines[c]
                for x in range(source.size):
                    line[x] = np.float32(source[x])
            resample(lines, first, length, lanes, ring[p % taps_y])
            done = p + 1
        total[:] = 0
        for i in range(taps_y):
            factor = weights[i, 0] * share
            if factor != 0:
                row, sums = ring[(origin + i) % taps_y].ravel(), total.ravel()
                for k in range(sums.size):
                    sums[k] = fused(factor, row[k], sums[k])
        for shift in (roll, roll - size):  # of what is rolled, and of what comes round the end
            here, there = max(begin_x, targets + shift), min(end_x, end + shift)
            if here < there and is_added:
                _add_pixels(total, here - shift - targets, gain, output[y, here:there])
            elif here < there:
                pixels = output[y].ravel()[here * channels : there * channels]
                put_together(total, 0, here - shift - targets, gain, offset, channels, pixels)


@kernel
def replay_kernel(
    like, output, images, ids, windows, partners, partner_windows, boxes, shares, gain, offset, is_mixup, M, C, H, W, B,
    size,
):  # fmt: skip
    images, output = memory(images, (M, C, H, W), np.uint8), memory(output, (B, size, size, C), like)
    ids, partners = memory(ids, B, np.int64), memory(partners, B, np.int64)
    windows, partner_windows = memory(windows, (B, 7), np.int32), memory(partner_windows, (B, 7), np.int32)
    boxes, shares = memory(boxes, (B, 4), np.int64), memory(shares, B, np.float32)
    gain, offset = memory(gain, C, np.float32), memory(offset, C, np.float32)
    one = np.float32(1)
    for b in prange(B):
        top, bottom, left, right = boxes[b]
        if is_mixup:
            top, bottom, left, right = ZERO, size, ZERO, size
        for r in range(5):  # above, below, left and right of the box, and the box: one call, as each would be compiled
            begin_y = (ZERO, bottom, top, top, top)[r]
            end_y = (size if is_mixup else top, size, bottom, bottom, bottom)[r]
            begin_x = (ZERO, ZERO, ZERO, right, left)[r]
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
    box = torch.tensor((size, size, 0, 0)).repeat(len(ids), 1) if boxes is None else boxes.long().clamp(0, size)
    if output.numel():
        launch_at(
            replay_kernel, made, output, images, ids, windows, ids if partners is None else partners,
            windows if partner_windows is None else partner_windows, box,
            torch.ones(len(ids)) if share is None else share, gain, offset, share is not None, *images.shape, len(ids),
            size,
        )  # fmt: skip
    return output.permute(0, 3, 1, 2).to(dtype)
