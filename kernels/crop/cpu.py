"""crop on the CPU: an output row mixes source rows, then its pixels mix along it; the adjoint is the same kernel.

Each output position has a short list of source positions and weights. The transposed lists make the adjoint a gather
too: no scatter, and no thread count moves a bit.
"""

from typing import NamedTuple

import numpy as np
import torch
from numba import prange
from torch import Tensor

from ..common.bfloat16 import store, widen
from ..common.threads import kernel, launch, part, planes


class Bands(NamedTuple):
    """The taps that each of S targets reads along one axis, for K windows; unused taps weigh 0."""

    taps: Tensor
    """int32 [K]: taps in use."""
    position: Tensor
    """int32 [K, T, S]: what the taps read."""
    weight: Tensor
    """float32 [K, T, S]: the taps' weights."""


@kernel
def bands_kernel(windows, axis, extent, taps, position, weight):
    # Centres and overlaps are integers, in units of 1 / (2 size) of a source pixel: exact, as in the Triton kernel.
    size = position.shape[2]
    for k in prange(len(windows)):
        start, length, roll = windows[k, axis], windows[k, axis + 2], windows[k, axis + 5]
        reach = 2 * max(length, size)
        for target in range(size):
            o = (target - roll) % size
            if axis == 1 and windows[k, 4] != 0:
                o = size - 1 - o
            center = (2 * o + 1) * length
            first = max((center - reach - size) // (2 * size) + 1, 0, -start)
            end = min(-((size - center - reach) // (2 * size)), length, extent - start)
            total = 0
            for p in range(first, end):
                total += reach - abs((2 * p + 1) * size - center)
            taps[k] = max(taps[k], end - first)
            if first < end:
                position[k, :, target] = start + first
            for p in range(first, end):
                position[k, p - first, target] = start + p
                weight[k, p - first, target] = (reach - abs((2 * p + 1) * size - center)) / np.float64(total)


@kernel
def transpose_kernel(taps, position, weight, taps_t, position_t, weight_t):
    for k in prange(len(taps)):
        count = np.zeros(position_t.shape[2], np.int32)
        for target in range(position.shape[2]):
            for t in range(taps[k]):
                if weight[k, t, target] > 0:
                    p = position[k, t, target]
                    position_t[k, count[p] :, p] = target
                    weight_t[k, count[p], p] = weight[k, t, target]
                    count[p] += 1
        taps_t[k] = count.max()


@part
def _mix_rows(source, first_plane, positions, weights, mixed):
    """mixed[p] = sum_t weights[t] source[first_plane + p, positions[t]]; returns whether there is any such t."""
    is_first = True
    for t in range(len(weights)):
        share = weights[t]
        if share > 0:
            for p in range(len(mixed)):
                line, total = source[first_plane + p, positions[t]], mixed[p]
                if is_first:
                    for i in range(line.size):
                        total[i] = share * np.float32(widen(line[i]))
                else:
                    for i in range(line.size):
                        total[i] += share * np.float32(widen(line[i]))
            is_first = False
    return not is_first


@part
def _mix_three(flat, apart, shift, taps, position, weight, gain, offset, out0, out1, out2):
    # three channels at once: a pixel's places and weights are read once, and its sums stay in registers
    for i in range(out0.size):
        sum0 = sum1 = sum2 = np.float32(0)
        for t in range(taps):
            at, share = np.uint32(position[t, i] * shift), weight[t, i]
            sum0 += share * flat[at]
            sum1 += share * flat[np.uint32(at + apart)]
            sum2 += share * flat[np.uint32(at + 2 * apart)]
        store(out0, i, sum0 * gain[0] + offset[0])
        store(out1, i, sum1 * gain[1] + offset[1])
        store(out2, i, sum2 * gain[2] + offset[2])


@part
def _mix_one(channel, shift, taps, position, weight, gain, offset, out):
    for i in range(out.size):
        value = np.float32(0)
        for t in range(taps):
            value += weight[t, i] * channel[np.uint32(position[t, i] * shift)]
        store(out, i, value * gain + offset)


@part
def mix_row(
    task, source, shift, taps_y, position_y, weight_y, taps_x, position_x, weight_x, gain, offset, out
):  # fmt: skip
    """A row of an output image, all channels."""
    _, channels, num_rows, num_columns = out.shape
    num_planes = channels if shift == 1 else 1
    apart = source.shape[2] if shift == 1 else 1  # of channels
    n, row = task // num_rows, task % num_rows
    k = n % len(taps_y)
    mixed = np.empty((num_planes, source.shape[2]), np.float32)
    weights = weight_y[k, : taps_y[k], row]
    if not _mix_rows(source, n * num_planes, position_y[k, : len(weights), row], weights, mixed):
        for c in range(channels):
            out_row = out[n, c, row]
            for i in range(num_columns):
                store(out_row, i, offset[c])
        return
    flat, taps, places, shares = mixed.ravel(), taps_x[k], position_x[k], weight_x[k]
    if channels == 3:
        _mix_three(
            flat, apart, shift, taps, places, shares, gain, offset, out[n, 0, row], out[n, 1, row], out[n, 2, row]
        )
    else:
        for c in range(channels):
            _mix_one(flat[c * apart :], shift, taps, places, shares, gain[c], offset[c], out[n, c, row])


@kernel
def mix_kernel(source, shift, taps_y, position_y, weight_y, taps_x, position_x, weight_x, gain, offset, out):
    # source: [planes, H, L], pixels `shift` apart; out: float32 or bfloat16 [N, C, rows, columns], any strides
    for task in prange(out.shape[0] * out.shape[2]):
        mix_row(
            np.int64(task), source, shift, taps_y, position_y, weight_y, taps_x, position_x, weight_x, gain, offset, out
        )


def empty_bands(num_windows: int, num_taps: int, size: int) -> Bands:
    """No taps in use."""
    shape = (num_windows, num_taps, size)
    return Bands(torch.zeros(num_windows, dtype=torch.int32), torch.zeros(shape, dtype=torch.int32), torch.zeros(shape))


def axis_bands(windows: Tensor, axis: int, extent: int, size: int) -> Bands:
    """Bands of `size` outputs over `extent` source positions along an axis (0: y, 1: x); windows: int32 [K, 7].

    Output o reads the triangle of half-width max(length / size, 1) around its centre, cut at the window's and the
    image's ends and normalised.
    """
    longest = max([size, *windows[:, 2 + axis].tolist()])
    bands = empty_bands(len(windows), -(-2 * longest // size), size)
    launch(bands_kernel, windows, axis, extent, *bands)
    return bands


def transposed(bands: Bands, lengths: Tensor, extent: int) -> Bands:
    """Bands of `extent` source positions: which outputs read each, in windows of these lengths."""
    size = bands.position.shape[2]
    shortest = max(1, min([size, *lengths.tolist()]))
    result = empty_bands(len(bands.taps), min(size, -(-2 * size // shortest)), extent)
    launch(transpose_kernel, *bands, *result)
    return result


class Crop(torch.autograd.Function):
    """`crop` of float32, bfloat16 or uint8 images to float32 or bfloat16; windows: contiguous int32, all else given."""

    @staticmethod
    def forward(ctx, images, windows, size, gain, offset, dtype):
        num_images, channels, height, width = images.shape
        output = torch.empty((num_images, channels, size, size), dtype=dtype, memory_format=torch.channels_last)
        ctx.save_for_backward(windows, gain)
        ctx.shape, ctx.dtype = images.shape, images.dtype
        ctx.layout = torch.contiguous_format if images.is_contiguous() else torch.channels_last
        along_y, along_x = axis_bands(windows, 0, height, size), axis_bands(windows, 1, width, size)
        launch(mix_kernel, *planes(images), *along_y, *along_x, gain, offset, output)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout):
        windows, gain = ctx.saved_tensors
        height, width = ctx.shape[2:]
        size = dout.shape[2]
        if not dout.is_contiguous():
            dout = dout.contiguous(memory_format=torch.channels_last)
        along_y = transposed(axis_bands(windows, 0, height, size), windows[:, 2], height)
        along_x = transposed(axis_bands(windows, 1, width, size), windows[:, 3], width)
        dimages = torch.empty(ctx.shape, dtype=ctx.dtype, memory_format=ctx.layout)
        launch(mix_kernel, *planes(dout), *along_y, *along_x, gain, torch.zeros_like(gain), dimages)
        return dimages, None, None, None, None, None
