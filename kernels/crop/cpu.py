"""crop on the CPU: an output row mixes source rows, then is resampled along itself; the adjoint is the same kernel.

Each output position has a short list of source positions and weights. The transposed lists make the adjoint a gather
too: no scatter, and no thread count moves a bit. The roll along x only says where a row's pixels are written, or, in
the adjoint, where they are read.
"""

import numpy as np
import torch
from numba import prange

from ..common.bfloat16 import widen
from ..common.memory import memory
from ..common.resample_cpu import STEP, fill_blocks, num_block_taps, num_blocks, put_together, resample
from ..common.threads import ELEMENTS, kernel, launch_at, part
from ..common.vectors import LANES, fused

ROWS = 32
"""Output rows of a task."""


@part
def _num_taps(windows, axis, size, is_adjoint):
    """The most taps of a target along an axis, and by how much they move from one target to the next: (taps, a, b)."""
    shortest = longest = size
    for k in range(len(windows)):
        shortest, longest = min(shortest, windows[k, axis + 2]), max(longest, windows[k, axis + 2])
    shortest = max(shortest, 1)
    if is_adjoint:
        return min(size, -(-2 * size // shortest)), size, shortest
    return -(-2 * longest // size), longest, size


@part
def _list_outputs(window, axis, extent, size, position, weight):
    """Fills position and weight [T, size] of an axis's outputs, mirrored along x, rolled along y; returns the taps.

    Output o reads the triangle of half-width max(length / size, 1) around its centre, cut at the window's and the
    image's ends and normalised. Centres and overlaps are integers, in units of 1 / (2 size) of a source pixel: exact,
    as in the Triton kernel.
    """
    start, length, taps = np.int64(window[axis]), np.int64(window[axis + 2]), 0
    reach = 2 * max(length, size)
    for target in range(size):
        if axis == 0:
            o = (target - window[5]) % size
        else:
            o = size - 1 - target if window[4] != 0 else target
        center = (2 * o + 1) * length
        first = max((center - reach - size) // (2 * size) + 1, 0, -start)
        end = min(-((size - center - reach) // (2 * size)), length, extent - start)
        total = 0
        for p in range(first, end):
            total += reach - abs((2 * p + 1) * size - center)
        taps = max(taps, end - first)
        if first < end:
            position[:, target] = start + first
        for p in range(first, end):
            position[p - first, target] = start + p
            weight[p - first, target] = (reach - abs((2 * p + 1) * size - center)) / np.float64(total)
    return taps


@part
def _list_targets(window, axis, extent, size, is_adjoint, position, weight):
    """The lists of the outputs, or of the source positions, which name the outputs that read each; returns the taps."""
    if not is_adjoint:
        return _list_outputs(window, axis, extent, size, position, weight)
    num_taps = -(-2 * max(np.int64(window[axis + 2]), size) // size)
    position_o, weight_o = np.zeros((num_taps, size), np.int32), np.zeros((num_taps, size), np.float32)
    taps, count = _list_outputs(window, axis, extent, size, position_o, weight_o), np.zeros(extent, np.int64)
    for o in range(size):
        for t in range(taps):
            if weight_o[t, o] > 0:
                p = position_o[t, o]
                position[count[p] :, p] = o
                weight[count[p], p] = weight_o[t, o]
                count[p] += 1
    return count.max()


@part
def _prepare(
    k, windows, height, width, size, is_adjoint, taps_y, position_y, weight_y, num_taps_x, first, length, lanes
):
    """What the targets of window k read: along y by lists, along x by blocks."""
    num_targets = width if is_adjoint else size
    position, weight = np.zeros((num_taps_x, num_targets), np.int32), np.zeros((num_taps_x, num_targets), np.float32)
    taps = _list_targets(windows[k], np.int64(1), width, size, is_adjoint, position, weight)
    fill_blocks(position, weight, taps, first[k], length[k], lanes[k])
    taps_y[k] = _list_targets(windows[k], np.int64(0), height, size, is_adjoint, position_y[k], weight_y[k])


@part
def _mix_rows(source, first_plane, positions, weights, begin, end, mixed):
    """mixed[p] = sum_t weights[t] source[first_plane + p, positions[t]] from begin to end; is there any such t?"""
    is_first = True
    for t in range(len(weights)):
        share = weights[t]
        if share > 0:
            for p in range(len(mixed)):
                line, total = source[first_plane + p, positions[t], begin:end], mixed[p, begin:end]
                if is_first:
                    for i in range(line.size):
                        total[i] = share * np.float32(widen(line[i]))
                else:
                    for i in range(line.size):
                        total[i] = fused(share, np.float32(widen(line[i])), total[i])
            is_first = False
    return not is_first


@part
def _take_apart(pixels, channels, lines, first, begin):
    """lines[first + c, begin + i] = pixels[i * channels + c], for all pixels."""
    end = begin + pixels.size // channels
    if channels == 3:  # a constant, with which the loop vectorises; so does 1
        line0, line1, line2 = lines[first, begin:end], lines[first + 1, begin:end], lines[first + 2, begin:end]
        for i in range(line0.size):
            line0[i] = pixels[3 * i]
            line1[i] = pixels[3 * i + 1]
            line2[i] = pixels[3 * i + 2]
    elif channels == 1:
        lines[first, begin:end] = pixels
    else:
        for c in range(channels):
            line = lines[first + c, begin:end]
            for i in range(line.size):
                line[i] = pixels[i * channels + c]


@part
def _mix_task(
    task, windows, source, out, gain, offset, inner, inner_out, is_adjoint, taps_y, position_y, weight_y, first, length,
    lanes,
):  # fmt: skip
    """ROWS rows of an output image, all channels; source, out: [planes, rows, pixels x inner channels]."""
    tasks = -(-out.shape[1] // ROWS)
    n, begin = task // tasks, task % tasks * ROWS
    k = n % len(windows)
    channels, pixels_in, pixels_out = gain.size, source.shape[2] // inner, out.shape[2] // inner_out
    roll, roll_out, low, high = np.int64(0), np.int64(0), np.int64(0), pixels_in
    if is_adjoint:
        roll = np.int64(windows[k, 6] % pixels_in)
    else:
        roll_out, left = np.int64(windows[k, 6] % pixels_out), np.int64(windows[k, 1])
        low, high = max(left, np.int64(0)), min(left + windows[k, 3], pixels_in)  # what is read of a row
    num_planes, planes_out, is_apart = channels // inner, channels // inner_out, inner > 1 or roll > 0
    # `resample` may read beyond a line's end
    mixed = np.zeros((num_planes, source.shape[2] + STEP), np.float32)
    lines = np.zeros((channels if is_apart else 0, pixels_in + STEP), np.float32)
    rows = np.empty((channels, first.shape[1] * LANES), np.float32)
    for row in range(begin, min(begin + ROWS, out.shape[1])):
        positions, weights = position_y[k, : taps_y[k], row], weight_y[k, : taps_y[k], row]
        if not _mix_rows(source, n * num_planes, positions, weights, low * inner, high * inner, mixed):
            rows[:] = 0
        else:
            for p in range(num_planes if is_apart else 0):
                pixels = mixed[p, : source.shape[2]]
                _take_apart(pixels[roll * inner :], inner, lines, p * inner, 0)
                _take_apart(pixels[: roll * inner], inner, lines, p * inner, pixels_in - roll)
            resample(lines if is_apart else mixed, first[k], length[k], lanes[k], rows)
        for p in range(planes_out):
            pixels = out[n * planes_out + p, row]
            put_together(rows, p * inner_out, 0, gain, offset, inner_out, pixels[roll_out * inner_out :])
            put_together(
                rows, p * inner_out, pixels_out - roll_out, gain, offset, inner_out, pixels[: roll_out * inner_out]
            )


@part
def _tables(windows, size, rows, columns, is_adjoint):
    """Zeros for what `_prepare` finds out about each window, and the most taps of a target along x."""
    K, blocks = len(windows), num_blocks(columns)
    num_taps_y = _num_taps(windows, np.int64(0), size, is_adjoint)[0]
    num_taps_x, apart, of = _num_taps(windows, np.int64(1), size, is_adjoint)
    taps_y, position_y = np.zeros(K, np.int64), np.zeros((K, num_taps_y, rows), np.int32)
    weight_y = np.zeros((K, num_taps_y, rows), np.float32)
    first, length = np.zeros((K, blocks), np.int64), np.zeros((K, blocks), np.int64)
    lanes = np.zeros((K, blocks, num_block_taps(num_taps_x, apart, of), LANES), np.float32)
    return num_taps_x, taps_y, position_y, weight_y, first, length, lanes


@kernel
def crop_kernel(
    like, like_out, source, out, windows, gain, offset, N, C, H, W, size, num_windows, inner, inner_out, is_adjoint
):
    # source and out: the images and their views, or, for the adjoint, the views' gradient and the images'
    windows, gain, offset = (
        memory(windows, (num_windows, 7), np.int32), memory(gain, C, np.float32), memory(offset, C, np.float32),
    )  # fmt: skip
    source_rows, source_columns = (size, size) if is_adjoint else (H, W)
    rows, columns = (H, W) if is_adjoint else (size, size)
    source = memory(source, (N * C // inner, source_rows, source_columns * inner), like)
    out = memory(out, (N * C // inner_out, rows, columns * inner_out), like_out)

    num_taps_x, taps_y, position_y, weight_y, first, length, lanes = _tables(windows, size, rows, columns, is_adjoint)
    for k in prange(num_windows):
        _prepare(
            np.int64(k), windows, H, W, size, is_adjoint, taps_y, position_y, weight_y, num_taps_x, first, length, lanes
        )
    for task in prange(N * -(-rows // ROWS)):
        _mix_task(
            np.int64(task), windows, source, out, gain, offset, inner, inner_out, is_adjoint, taps_y, position_y,
            weight_y, first, length, lanes,
        )  # fmt: skip


class Crop(torch.autograd.Function):
    """`crop` of float32, bfloat16 or uint8 images to float32 or bfloat16; windows: contiguous int32, all else given."""

    @staticmethod
    def forward(ctx, images, windows, size, gain, offset, dtype):
        num_images, channels = images.shape[:2]
        output = torch.empty((num_images, channels, size, size), dtype=dtype, memory_format=torch.channels_last)
        ctx.save_for_backward(windows, gain)
        ctx.shape, ctx.dtype = images.shape, images.dtype
        ctx.inner = 1 if images.is_contiguous() else channels
        if output.numel():
            launch_at(
                crop_kernel, images.dtype, ELEMENTS[dtype], images, output, windows, gain, offset, *images.shape, size,
                len(windows), ctx.inner, channels, False,
            )  # fmt: skip
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout):
        windows, gain = ctx.saved_tensors
        channels, size = dout.shape[1:3]
        layout = torch.contiguous_format if ctx.inner == 1 else torch.channels_last
        dimages = torch.empty(ctx.shape, dtype=ctx.dtype, memory_format=layout)
        if not dout.is_contiguous():
            dout = dout.contiguous(memory_format=torch.channels_last)
        if dimages.numel():
            launch_at(
                crop_kernel, dout.dtype, ELEMENTS[ctx.dtype], dout, dimages, windows, gain, torch.zeros_like(gain),
                *ctx.shape, size, len(windows), 1 if dout.is_contiguous() else channels, ctx.inner, True,
            )  # fmt: skip
        return dimages, None, None, None, None, None
