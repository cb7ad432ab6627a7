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
from ..common.threads import chunk_length, inline, kernel, launch
from .definition import output_size

ZERO = np.float32(0)
CUT_OFF = np.int32(9)


@inline
def neighbours(i, extent):
    """Indices before and after i, moved into [0, extent), and where they are in a window around i: 0, 1 or 2."""
    before, after = max(i - 1, 0), min(i + 1, extent - 1)
    return before, after, before - i + 1, after - i + 1


@inline
def take(best, place, x, scale, shift, here):
    """The maximum and its place after one more value of a window; a NaN wins."""
    y = widen(x) * scale + shift
    wins = (y > best) | (y != y)
    return y if wins else best, np.int32(here) if wins else place


@inline
def take_row(best, place, left, center, right, scale, shift, here, before, after):
    best, place = take(best, place, left, scale, shift, here + before)
    best, place = take(best, place, center, scale, shift, here + 1)
    return take(best, place, right, scale, shift, here + after)


@inline
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


@inline
def add_row(x, center, sums):
    """sums[0], sums[1] += the sum over a row [W, C] of x - center, and of its square."""
    for j in range(x.shape[0]):
        for c in range(x.shape[1]):
            deviation = widen(x[j, c]) - center[c]
            sums[0, c] += deviation
            sums[1, c] += deviation * deviation


@inline
def flush(sums, partial):
    """partial += sums; sums = 0. A row is short enough to be summed in float32, the rows are not."""
    for i in range(2):
        for c in range(sums.shape[1]):
            partial[i, c] += sums[i, c]
            sums[i, c] = ZERO


@inline
def combine(partial, center, num_rows, mean, var):
    """mean, var [C] from the chunks' sums [num_chunks, 2, C], in index order."""
    for c in range(center.size):
        sum1 = sum2 = 0.0
        for p in range(partial.shape[0]):
            sum1 += partial[p, 0, c]
            sum2 += partial[p, 1, c]
        shifted = sum1 / num_rows
        mean[c] = center[c] + shifted
        square = sum2 / num_rows - shifted * shifted
        var[c] = 0.0 if square < 0 else square


@kernel
def forward(x, scale, shift, center, output_center, has_output, y, argmax, mean, var, y_mean, y_var, chunk):
    # x: [N, H, W, C]; y, argmax: [N, ceil(H / 2), ceil(W / 2), C]; a chunk is `chunk` rows of y
    num_images, height, width, channels = x.shape
    num_rows, out_height, out_width = y.shape[0] * y.shape[1], y.shape[1], y.shape[2]
    num_chunks = (num_rows + chunk - 1) // chunk
    partial = np.zeros((2, num_chunks, 2, channels), np.float64)
    for index in prange(num_chunks):
        sums = np.zeros((2, channels), np.float32)
        for row in range(index * chunk, min(index * chunk + chunk, num_rows)):
            n, i = row // out_height, row % out_height
            top, bottom, above, below = neighbours(2 * i, height)
            pool_row(x[n, top], x[n, 2 * i], x[n, bottom], 3 * above, 3 * below, scale, shift, y[n, i], argmax[n, i])
            add_row(x[n, 2 * i], center, sums)
            if 2 * i + 1 < height:
                add_row(x[n, 2 * i + 1], center, sums)
            flush(sums, partial[0, index])
            if has_output:
                add_row(y[n, i], output_center, sums)
                flush(sums, partial[1, index])
    combine(partial[0], center, num_images * height * width, mean, var)
    if has_output:
        combine(partial[1], output_center, num_rows * out_width, y_mean, y_var)


@inline
def windows(i, extent):
    """The windows over pixel i along an axis, and the pixel's places in them: a place below 0 if there is one only."""
    first, second = i // 2, min((i + 1) // 2, extent - 1)
    return first, second, i - 2 * first + 1, 0 if second > first else -9


@inline
def pick(dy, place, here):
    return dy if np.int32(place) == here else ZERO


@inline
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
                y = as_stored(
                    dx_w, x_c * scale[c] + shift[c]
                )  # where the pixel is the maximum; elsewhere nobody picks it
                extra = output_line[1, c] + output_line[2, c] * (y - output_line[0, c])
            gradient = pick(widen(dy00[c]) + extra, at00[c], here00) + pick(widen(dy01[c]) + extra, at01[c], here01)
            gradient += pick(widen(dy10[c]) + extra, at10[c], here10) + pick(widen(dy11[c]) + extra, at11[c], here11)
            gradient *= scale[c]
            if input_line.size:
                gradient += input_line[1, c] + input_line[2, c] * (x_c - input_line[0, c])
            store(dx_w, c, gradient)


@kernel
def backward(x, dy, argmax, scale, shift, input_line, output_line, dx, chunk):
    # x, dx: [N, H, W, C]; dy, argmax: [N, ceil(H / 2), ceil(W / 2), C]; a chunk is `chunk` rows of x
    height, out_height = x.shape[1], dy.shape[1]
    num_rows = x.shape[0] * height
    for index in prange((num_rows + chunk - 1) // chunk):
        for row in range(index * chunk, min(index * chunk + chunk, num_rows)):
            n, h = row // height, row % height
            first, second, row0, row1 = windows(h, out_height)
            spread_row(
                x[n, h], dy[n, first], dy[n, second], argmax[n, first], argmax[n, second], 3 * row0, 3 * row1, scale,
                shift, input_line, output_line, dx[n, h],
            )  # fmt: skip


class FrozenBatchNormPool(torch.autograd.Function):
    """Outputs of `frozen_batch_norm_pool` from checked arguments, all of them float32."""

    @staticmethod
    def forward(ctx, x, scale, shift, center, output_center):
        num_images, channels, height, width = x.shape
        shape = (num_images, channels, output_size(height), output_size(width))
        y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        argmax = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
        mean, var, y_mean, y_var = (torch.empty_like(center) for _ in range(4))
        has_output = output_center is not None
        launch(
            forward, _rows(x), scale, shift, center, output_center if has_output else center, has_output, _rows(y),
            _rows(argmax), mean, var, y_mean, y_var, chunk_length(num_images * shape[2]),
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
        launch(
            backward, _rows(x), _rows(dy), _rows(argmax), scale, shift, _line(mean, dmean, dvar, x.numel()),
            _line(y_mean, dy_mean, dy_var, dy.numel()), _rows(dx), chunk_length(x.shape[0] * x.shape[2]),
        )  # fmt: skip
        return dx, None, None, None, None


def _rows(x: Tensor) -> Tensor:
    """[N, C, H, W] channels_last -> a view [N, H, W, C]."""
    return x.permute(0, 2, 3, 1)


def _line(mean: Tensor, dmean: Tensor | None, dvar: Tensor | None, size: int) -> Tensor:
    """The line that moments' gradients add to dx: line[1] + line[2] * (x - line[0]). [3, C], or [3, 0] if nothing."""
    if dmean is None and dvar is None:
        return mean.new_empty(3, 0)
    num_rows = size / mean.numel()  # d mean / dx = 1 / R and d var / dx = 2 (x - mean) / R
    offset, slope = (torch.zeros_like(mean) if grad is None else grad / num_rows for grad in (dmean, dvar))
    return torch.stack((mean, offset, 2 * slope))
