"""frozen_batch_norm_pool on the CPU: float32, one pass over x forward and one backward, the same bits on any threads.

Beside y the forward keeps a byte an output, the place of its maximum in the 3x3 window (3 * row + column), or 9 if the
ReLU cut it off. The backward gathers: every pixel asks the windows over it, at most four, whether it was the maximum.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from ..common.bfloat16 import as_stored, store, widen
from ..common.channel_moments_cpu import FIRST, SECOND, store_moments
from ..common.memory import memory
from ..common.threads import chunk_length, kernel, launch_at, part
from ..common.vectors import fused
from .definition import output_size

ZERO = np.float32(0)
CUT_OFF = np.int32(9)


@part
def neighbours(i, extent):
    """Indices before and after i, moved into [0, extent), and where they are in a window around i: 0, 1 or 2."""
    before, after = max(i - 1, 0), min(i + 1, extent - 1)
    return before, after, before - i + 1, after - i + 1


@part
def take(best, place, x, scale, shift, here):
    """The maximum and its place after one more value of a window; a NaN wins."""
    y = fused(widen(x), scale, shift)
    wins = (y > best) | (y != y)
    return y if wins else best, np.int32(here) if wins else place


@part
def take_row(best, place, left, center, right, scale, shift, here, before, after):
    best, place = take(best, place, left, scale, shift, here + before)
    best, place = take(best, place, center, scale, shift, here + 1)
    return take(best, place, right, scale, shift, here + after)


@part
def pool_row(top, middle, bottom, above, below, scale, shift, y, argmax):
    """One row of y from three of x, [W, C]; above and below: 3 * the window's row in which top and bottom are."""
    for j in range(y.shape[0]):
        # A neighbour beyond the border is the border again, in its own place: its second visit changes nothing.
        left, right, before, after = neighbours(2 * j, middle.shape[0])
        x00, x01, x02 = top[left], top[2 * j], top[right]
        x10, x11, x12 = middle[left], middle[2 * j], middle[right]
        x20, x21, x22 = bottom[left], bottom[2 * j], bottom[right]
        y_j, argmax_j = y[j], argmax[j]
        for c in range(y_j.size):
            best, place = take_row(ZERO, CUT_OFF, x00[c], x01[c], x02[c], scale[c], shift[c], above, before, after)
            best, place = take_row(best, place, x10[c], x11[c], x12[c], scale[c], shift[c], 3, before, after)
            best, place = take_row(best, place, x20[c], x21[c], x22[c], scale[c], shift[c], below, before, after)
            store(y_j, c, best)
            argmax_j[c] = place


@part
def add_row(x, center, sums):
    """sums[0], sums[1] += the sum over a row [W, C] of x - center, and of its square."""
    for j in range(x.shape[0]):
        for c in range(x.shape[1]):
            deviation = widen(x[j, c]) - center[c]
            sums[0, c] += deviation
            sums[1, c] = fused(deviation, deviation, sums[1, c])


@part
def flush(sums, partial):
    """partial += sums; sums = 0. A row is short enough to be summed in float32, the rows are not."""
    for i in range(2):
        for c in range(sums.shape[1]):
            partial[i, c] += sums[i, c]
            sums[i, c] = ZERO


@part
def pool_chunk(like, x, scale, shift, center, output_center, y, argmax, partial, N, C, H, W, k, chunk):
    """Chunk k of the rows of y, and the sums of the rows of x over them and of their own: partial [chunks, 4, C]."""
    out_height = (H + 1) // 2
    x, y = memory(x, (N, H, W, C), like), memory(y, (N, out_height, (W + 1) // 2, C), like)
    argmax, has_output = memory(argmax, y.shape, np.uint8), output_center != 0
    scale, shift = memory(scale, C, np.float32), memory(shift, C, np.float32)
    center, output_center = memory(center, C, np.float32), memory(output_center, C, np.float32)
    sums = np.zeros((2, C), np.float32)
    for row in range(k * chunk, min((k + 1) * chunk, N * out_height)):
        n, i = row // out_height, row % out_height
        top, bottom, above, below = neighbours(2 * i, H)
        pool_row(x[n, top], x[n, 2 * i], x[n, bottom], 3 * above, 3 * below, scale, shift, y[n, i], argmax[n, i])
        for h in range(2 * i, min(2 * i + 2, H)):
            add_row(x[n, h], center, sums)
        flush(sums, partial[k, :2])
        if has_output:
            add_row(y[n, i], output_center, sums)
            flush(sums, partial[k, 2:])


@kernel
def forward(like, x, scale, shift, center, output_center, y, argmax, mean, var, y_mean, y_var, N, C, H, W, chunk):
    # x: [N, H, W, C]; y, argmax: [N, ceil(H / 2), ceil(W / 2), C]; a chunk is `chunk` rows of y; 0 for what is missing
    num_rows = N * ((H + 1) // 2)
    num_chunks = (num_rows + chunk - 1) // chunk
    partial = np.zeros((num_chunks, 4, C), np.float64)
    for k in prange(num_chunks):
        pool_chunk(like, x, scale, shift, center, output_center, y, argmax, partial, N, C, H, W, np.int64(k), chunk)
    store_moments(partial, FIRST, N * H * W, center, mean, var)
    if output_center != 0:
        store_moments(partial, SECOND, num_rows * ((W + 1) // 2), output_center, y_mean, y_var)


@part
def windows(i, extent):
    """The windows over pixel i along an axis, and the pixel's places in them: a place below 0 if there is one only."""
    first, second = i // 2, min((i + 1) // 2, extent - 1)
    return first, second, i - 2 * first + 1, 0 if second > first else -9


@part
def pick(dy, place, here):
    return dy if np.int32(place) == here else ZERO


@part
def spread_row(x, dy0, dy1, argmax0, argmax1, row0, row1, scale, shift, input_line, output_line, dx):
    """One row of dx, [W, C], from the two rows of windows over it; row0, row1: 3 * the row that it is in those."""
    for w in range(x.shape[0]):
        first, second, column0, column1 = windows(w, dy0.shape[0])
        here00, here01 = np.int32(row0 + column0), np.int32(row0 + column1)
        here10, here11 = np.int32(row1 + column0), np.int32(row1 + column1)
        dy00, dy01, dy10, dy11 = dy0[first], dy0[second], dy1[first], dy1[second]
        at00, at01, at10, at11 = argmax0[first], argmax0[second], argmax1[first], argmax1[second]
        x_w, dx_w = x[w], dx[w]
        for c in range(x_w.size):
            extra, x_c = ZERO, widen(x_w[c])
            if output_line.size:
                # y where the pixel is the maximum; elsewhere nobody picks it
                y = as_stored(dx_w, fused(x_c, scale[c], shift[c]))
                extra = fused(output_line[2, c], y - output_line[0, c], output_line[1, c])
            gradient = pick(widen(dy00[c]) + extra, at00[c], here00) + pick(widen(dy01[c]) + extra, at01[c], here01)
            gradient += pick(widen(dy10[c]) + extra, at10[c], here10) + pick(widen(dy11[c]) + extra, at11[c], here11)
            gradient *= scale[c]
            if input_line.size:
                gradient += fused(input_line[2, c], x_c - input_line[0, c], input_line[1, c])
            store(dx_w, c, gradient)


@part
def spread_chunk(like, x, dy, argmax, scale, shift, input_line, output_line, dx, N, C, H, W, k, chunk):
    """Chunk k of the rows of dx."""
    out_height = (H + 1) // 2
    x, dx = memory(x, (N, H, W, C), like), memory(dx, (N, H, W, C), like)
    dy = memory(dy, (N, out_height, (W + 1) // 2, C), like)
    argmax = memory(argmax, dy.shape, np.uint8)
    scale, shift = memory(scale, C, np.float32), memory(shift, C, np.float32)
    input_line = memory(input_line, (3, C if input_line != 0 else 0), np.float32)
    output_line = memory(output_line, (3, C if output_line != 0 else 0), np.float32)
    for row in range(k * chunk, min((k + 1) * chunk, N * H)):
        n, h = row // H, row % H
        begin, end, row0, row1 = windows(h, out_height)
        spread_row(
            x[n, h], dy[n, begin], dy[n, end], argmax[n, begin], argmax[n, end], 3 * row0, 3 * row1, scale, shift,
            input_line, output_line, dx[n, h],
        )  # fmt: skip


@kernel
def backward(like, x, dy, argmax, scale, shift, input_line, output_line, dx, N, C, H, W, chunk):
    # x, dx: [N, H, W, C]; dy, argmax: [N, ceil(H / 2), ceil(W / 2), C]; a chunk is `chunk` rows of x
    for k in prange((N * H + chunk - 1) // chunk):
        spread_chunk(like, x, dy, argmax, scale, shift, input_line, output_line, dx, N, C, H, W, np.int64(k), chunk)


class FrozenBatchNormPool(torch.autograd.Function):
    """Outputs of `frozen_batch_norm_pool` from checked arguments, all of them dense."""

    @staticmethod
    def forward(ctx, x, scale, shift, center, output_center):
        num_images, channels, height, width = x.shape
        shape = (num_images, channels, output_size(height), output_size(width))
        y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        argmax = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
        mean, var = torch.empty_like(center), torch.empty_like(center)
        has_output = output_center is not None
        y_mean, y_var = (torch.empty_like(center), torch.empty_like(center)) if has_output else (None, None)
        launch_at(
            forward, x.dtype, x, scale, shift, center, output_center, y, argmax, mean, var, y_mean, y_var, *x.shape,
            chunk_length(num_images * shape[2]),
        )  # fmt: skip
        ctx.save_for_backward(x, argmax, scale, shift, mean, y_mean)
        ctx.set_materialize_grads(False)
        return (y, mean, var, y_mean, y_var) if has_output else (y, mean, var)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dmean, dvar, dy_mean=None, dy_var=None):
        x, argmax, scale, shift, mean, y_mean = ctx.saved_tensors
        dy = torch.zeros_like(argmax, dtype=x.dtype) if dy is None else dy.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        launch_at(
            backward, x.dtype, x, dy, argmax, scale, shift, _line(mean, dmean, dvar, x.numel()),
            _line(y_mean, dy_mean, dy_var, dy.numel()), dx, *x.shape, chunk_length(x.shape[0] * x.shape[2]),
        )  # fmt: skip
        return dx, None, None, None, None


def _line(mean: Tensor, dmean: Tensor | None, dvar: Tensor | None, size: int) -> Tensor | None:
    """The line that moments' gradients add to dx: line[1] + line[2] * (x - line[0]). [3, C], or None if nothing."""
    if dmean is None and dvar is None:
        return None
    num_rows = size / mean.numel()  # d mean / dx = 1 / R and d var / dx = 2 (x - mean) / R
    offset, slope = (torch.zeros_like(mean) if grad is None else grad / num_rows for grad in (dmean, dvar))
    return torch.stack((mean, offset, 2 * slope))
