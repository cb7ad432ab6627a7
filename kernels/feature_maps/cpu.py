"""feature_maps on the CPU in float32: x is read once forward, and dy and x once backward.

A task takes some rows of some images, so that a row is still in the cache when it is the neighbour of another one.
"""

import functools

import numpy as np
import torch
from numba import prange

from ..common.bfloat16 import round_, wide_of, widen
from ..common.launch import cdiv
from ..common.memory import memory
from ..common.threads import NUM_CHUNKS, kernel, lanes, launch_at, part

TASK = 16384  # elements that are worth a task of their own


@lanes
def sum_pixel(x, center, n, h, w, channels):
    """Sums over the channels of x[n, h, w] - center and of its square."""
    sum1 = sum2 = np.float32(0)
    for c in range(channels):
        deviation = widen(x[n, h, w, c]) - center
        sum1 += deviation
        sum2 += deviation * deviation
    return sum1, sum2


@lanes
def multiply_pixel(x, center, n, h, w, down, left, right):
    """Sums over the channels of x[n, h, w] - center times the same of four neighbours."""
    sum1 = sum2 = sum3 = sum4 = np.float32(0)
    for c in range(x.shape[3]):
        deviation = widen(x[n, h, w, c]) - center
        sum1 += deviation * (widen(x[n, h, right, c]) - center)
        sum2 += deviation * (widen(x[n, down, w, c]) - center)
        sum3 += deviation * (widen(x[n, down, right, c]) - center)
        sum4 += deviation * (widen(x[n, down, left, c]) - center)
    return sum1, sum2, sum3, sum4


@part
def add_sums(x, center, n, h, maps, channels):
    """maps[0 : 2, h] += the sums of row h of image n."""
    for w in range(x.shape[2]):
        sum1, sum2 = sum_pixel(x, center, n, h, w, channels)
        maps[0, h, w] += sum1
        maps[1, h, w] += sum2


@part
def add_products(x, center, n, h, maps):
    """maps[2 : 6, h] += the products of row h of image n with what is right of it and below it."""
    bottom, end = x.shape[1] - 1, x.shape[2] - 1
    down = min(h + 1, bottom)
    for w in range(x.shape[2]):
        left, right = max(w - 1, 0), min(w + 1, end)
        sum1, sum2, sum3, sum4 = multiply_pixel(x, center, n, h, w, down, left, right)
        if w < end:
            maps[2, h, w] += sum1
        if h < bottom:
            maps[3, h, w] += sum2
            if w < end:
                maps[4, h, w] += sum3
            if w > 0:
                maps[5, h, w] += sum4


@part
def add_channels(x, center, n, h, sums, channels):
    """sums[0 : 2, w] += x - center and its square, of row h of image n."""
    for w in range(x.shape[2]):
        for c in range(channels):
            deviation = widen(x[n, h, w, c]) - center[c]
            sums[0, w, c] += deviation
            sums[1, w, c] += deviation * deviation


@part
def add_task(like, x, center, map_center, partial, moments, N, C, H, W, images, rows, task):
    """Sums of some rows of some images: a part of partial [image chunks, maps, H, W], and moments[task]."""
    chunk, first = task // -(-H // rows), task % -(-H // rows) * rows
    last = min(first + rows, H)
    x, map_center = memory(x, (N, H, W, C), like), memory(map_center, 1, np.float32)[0]
    maps, has_channels = partial[chunk], center != 0
    center = memory(center, C, np.float32)
    maps[:, first:last] = 0
    sums = np.zeros((2, W if has_channels else 0, C), np.float32)
    for n in range(chunk * images, min(chunk * images + images, N)):
        for h in range(first, last):
            if C == 3:  # a constant, which makes the pixels of an image the lanes
                add_sums(x, map_center, n, h, maps, 3)
            else:
                add_sums(x, map_center, n, h, maps, C)
            if maps.shape[0] == 6:
                add_products(x, map_center, n, h, maps)
            if has_channels:
                if C == 3:
                    add_channels(x, center, n, h, sums, 3)
                else:
                    add_channels(x, center, n, h, sums, C)
    for k in range(2):
        for w in range(sums.shape[1]):
            for c in range(C):
                moments[task, k, c] += sums[k, w, c]


@part
def store_maps(partial, maps):
    """Stores the sums of the chunks' maps at an address, in index order: few beside the elements that they sum up."""
    num_chunks, num_maps, H, W = partial.shape
    maps = memory(maps, (num_maps, H, W), np.float32)
    for k in range(num_maps):
        for h in range(H):
            for w in range(W):
                maps[k, h, w] = partial[0, k, h, w]
            for chunk in range(1, num_chunks):
                for w in range(W):
                    maps[k, h, w] += partial[chunk, k, h, w]


@part
def store_moments(moments, num_rows, center, mean, var):
    """Mean and variance at two addresses, from the tasks' sums in index order."""
    C = moments.shape[2]
    center, mean, var = memory(center, C, np.float32), memory(mean, C, np.float32), memory(var, C, np.float32)
    for task in range(1, moments.shape[0]):
        for k in range(2):
            for c in range(C):
                moments[0, k, c] += moments[task, k, c]
    scale = np.float32(1 / num_rows)
    for c in range(C):
        shifted = moments[0, 0, c] * scale
        mean[c] = center[c] + shifted
        square = moments[0, 1, c] * scale - shifted * shifted
        var[c] = np.float32(0) if square < 0 else square  # NaN stays NaN


@kernel
def forward_kernel(like, x, center, map_center, maps, mean, var, N, C, H, W, num_maps, images, rows):
    # x: [N, H, W, C], of the type of `like`; maps: [num_maps, H, W]; center, mean, var: [C], or 0 without channels
    partial = np.empty((-(-N // images), num_maps, H, W), np.float32)
    moments = np.zeros((len(partial) * -(-H // rows), 2, C), np.float32)
    for task in prange(len(moments)):
        add_task(like, x, center, map_center, partial, moments, N, C, H, W, images, rows, np.int64(task))
    store_maps(partial, maps)
    if center != 0:
        store_moments(moments, N * H * W, center, mean, var)


@part
def pull_sums(dy, x, center, offset, slope, mean, dmaps, n, h, row, channels, has_channels):
    """Row h of image n of dx, float32 [W, C]: dy and the gradients through sums of one element."""
    for w in range(x.shape[2]):
        constant, factor = dmaps[0, h, w], np.float32(2) * dmaps[1, h, w]
        for c in range(channels):
            here = widen(x[n, h, w, c])
            value = widen(dy[n, h, w, c]) + (constant + factor * (here - center))
            if has_channels:
                value += offset[c] + slope[c] * (here - mean[c])
            row[w, c] = value


@part
def pull_products(x, center, dmaps, n, h, row):
    """row += the gradient through products. A neighbour beyond the edge has the weight zero."""
    bottom, end = x.shape[1] - 1, x.shape[2] - 1
    up, down = max(h - 1, 0), min(h + 1, bottom)
    zero = np.float32(0)
    for w in range(x.shape[2]):
        left, right = max(w - 1, 0), min(w + 1, end)
        to_right = dmaps[2, h, w] if w < end else zero
        to_left = dmaps[2, h, left] if w > 0 else zero
        to_down = dmaps[3, h, w] if h < bottom else zero
        to_up = dmaps[3, up, w] if h > 0 else zero
        to_down_right = dmaps[4, h, w] if h < bottom and w < end else zero
        to_up_left = dmaps[4, up, left] if h > 0 and w > 0 else zero
        to_down_left = dmaps[5, h, w] if h < bottom and w > 0 else zero
        to_up_right = dmaps[5, up, right] if h > 0 and w < end else zero
        for c in range(x.shape[3]):
            value = row[w, c]
            value += to_left * (widen(x[n, h, left, c]) - center) + to_right * (widen(x[n, h, right, c]) - center)
            value += to_up_left * (widen(x[n, up, left, c]) - center) + to_up * (widen(x[n, up, w, c]) - center)
            value += to_up_right * (widen(x[n, up, right, c]) - center) + to_down_left * (
                widen(x[n, down, left, c]) - center
            )
            value += to_down * (widen(x[n, down, w, c]) - center) + to_down_right * (
                widen(x[n, down, right, c]) - center
            )
            row[w, c] = value


@part
def pull_task(like, dy, x, map_center, offset, slope, mean, dmaps, dx, N, C, H, W, num_maps, rows, task):
    """Some rows of an image of dx."""
    n, first, has_channels = task // -(-H // rows), task % -(-H // rows) * rows, mean != 0
    dy, x, dx = memory(dy, (N, H, W, C), like), memory(x, (N, H, W, C), like), memory(dx, (N, H, W, C), like)
    offset, slope, mean = memory(offset, C, np.float32), memory(slope, C, np.float32), memory(mean, C, np.float32)
    dmaps, center = memory(dmaps, (num_maps, H, W), np.float32), memory(map_center, 1, np.float32)[0]
    buffer = np.empty((W, C), np.float32)
    for h in range(first, min(first + rows, H)):
        row = wide_of(dx[n, h], buffer)
        if C == 3:
            pull_sums(dy, x, center, offset, slope, mean, dmaps, n, h, row, 3, has_channels)
        else:
            pull_sums(dy, x, center, offset, slope, mean, dmaps, n, h, row, C, has_channels)
        if num_maps == 6:
            pull_products(x, center, dmaps, n, h, row)
        round_(row.ravel(), dx[n, h].ravel())


@kernel
def backward_kernel(like, dy, x, map_center, offset, slope, mean, dmaps, dx, N, C, H, W, num_maps, rows):
    # dy, x, dx: [N, H, W, C], of the type of `like`; offset, slope, mean: [C], or 0; dmaps: [num_maps, H, W]
    for task in prange(N * -(-H // rows)):
        pull_task(like, dy, x, map_center, offset, slope, mean, dmaps, dx, N, C, H, W, num_maps, rows, np.int64(task))


@functools.cache
def split(shape: torch.Size, num_maps: int) -> tuple[int, int]:
    """Images and rows a task, for about TASK elements; images enough that their maps are small beside them."""
    num_images, channels, height, width = shape
    tasks = min(NUM_CHUNKS, cdiv(num_images * channels * height * width, TASK))
    images = min(num_images, max(cdiv(32 * num_maps, channels), cdiv(num_images, tasks)))
    return images, cdiv(height, cdiv(tasks, cdiv(num_images, images)))


class FeatureMaps(torch.autograd.Function):
    """x, maps, mean, var of `feature_maps` for dense x on the CPU; center is None if there are no channel moments."""

    @staticmethod
    def forward(ctx, x, center, map_center, has_neighbours):
        num_maps = 6 if has_neighbours else 2
        channels, height, width = x.shape[1:]
        maps = torch.empty(num_maps, height, width)
        center = None if center is None else center.contiguous()
        mean, var = (None, None) if center is None else (torch.empty(channels), torch.empty(channels))
        launch_at(
            forward_kernel, x.dtype, x, center, map_center, maps, mean, var, *x.shape, num_maps,
            *split(x.shape, num_maps),
        )  # fmt: skip
        ctx.save_for_backward(x, map_center, mean)
        ctx.set_materialize_grads(False)
        return x, maps, mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dmaps, dmean, dvar):
        x, map_center, mean = ctx.saved_tensors
        num_images, _, height, width = x.shape
        num_rows = num_images * height * width
        dy = torch.zeros_like(x) if dy is None else dy.contiguous(memory_format=torch.channels_last)
        dmaps = torch.zeros(2, height, width) if dmaps is None else dmaps.contiguous()
        if dmean is None and dvar is None:
            offset = slope = mean = None
        else:
            offset = torch.zeros_like(mean) if dmean is None else dmean / num_rows
            slope = torch.zeros_like(mean) if dvar is None else dvar * (2 / num_rows)
        dx = torch.empty_like(x)
        launch_at(
            backward_kernel, x.dtype, dy, x, map_center, offset, slope, mean, dmaps, dx, *x.shape, len(dmaps),
            cdiv(height, cdiv(NUM_CHUNKS, num_images)),
        )  # fmt: skip
        return dx, None, None, None
