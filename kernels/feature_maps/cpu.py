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
from ..common.threads import NUM_CHUNKS, kernel, launch_at, part
from ..common.vectors import LANES, fused, keep, load, splat, sum_lanes

TASK = 16384  # elements that are worth a task of their own
ZERO, TWO = np.float32(0), np.float32(2)


@part
def sum_pixel(x, center, here, channels):
    """Sums over the channels of a pixel's x - center and of its square."""
    centers, sums1, sums2 = splat(center), splat(ZERO), splat(ZERO)
    whole = channels // LANES * LANES
    for c in range(0, whole, LANES):
        d = load(x, here + c) - centers
        sums1 += d
        sums2 = fused(d, d, sums2)
    sum1, sum2 = sum_lanes(sums1), sum_lanes(sums2)
    for c in range(whole, channels):
        deviation = widen(x[here + c]) - center
        sum1 += deviation
        sum2 = fused(deviation, deviation, sum2)
    return sum1, sum2


@part
def multiply_pixel(x, center, here, right, down, down_right, down_left, channels):
    """Sums over the channels of a pixel's d = x - center, of d^2, and of d times those at four other places."""
    centers = splat(center)
    sums1 = sums2 = products1 = products2 = products3 = products4 = splat(ZERO)
    whole = channels // LANES * LANES
    for c in range(0, whole, LANES):
        d = load(x, here + c) - centers
        sums1 += d
        sums2 = fused(d, d, sums2)
        products1 = fused(d, load(x, right + c) - centers, products1)
        products2 = fused(d, load(x, down + c) - centers, products2)
        products3 = fused(d, load(x, down_right + c) - centers, products3)
        products4 = fused(d, load(x, down_left + c) - centers, products4)
    sum1, sum2 = sum_lanes(sums1), sum_lanes(sums2)
    product1, product2 = sum_lanes(products1), sum_lanes(products2)
    product3, product4 = sum_lanes(products3), sum_lanes(products4)
    for c in range(whole, channels):
        deviation = widen(x[here + c]) - center
        sum1 += deviation
        sum2 = fused(deviation, deviation, sum2)
        product1 = fused(deviation, widen(x[right + c]) - center, product1)
        product2 = fused(deviation, widen(x[down + c]) - center, product2)
        product3 = fused(deviation, widen(x[down_right + c]) - center, product3)
        product4 = fused(deviation, widen(x[down_left + c]) - center, product4)
    return sum1, sum2, product1, product2, product3, product4


@part
def add_sums(x, center, n, h, maps, channels):
    """maps[0 : 2, h] += the sums of row h of image n."""
    height, width = x.shape[1:3]
    row, flat = (n * height + h) * width, x.ravel()
    for w in range(width):
        sum1, sum2 = sum_pixel(flat, center, (row + w) * channels, channels)
        maps[0, h, w] += sum1
        maps[1, h, w] += sum2


@part
def add_products(x, center, n, h, maps):
    """maps[:, h] += the sums of row h of image n and its products with what is right of it and below it."""
    height, width, channels = x.shape[1:]
    bottom, end, flat = height - 1, width - 1, x.ravel()
    row, below = (n * height + h) * width, (n * height + min(h + 1, bottom)) * width
    for w in range(width):
        left, right = max(w - 1, 0), min(w + 1, end)
        sum1, sum2, product1, product2, product3, product4 = multiply_pixel(
            flat, center, (row + w) * channels, (row + right) * channels, (below + w) * channels,
            (below + right) * channels, (below + left) * channels, channels,
        )  # fmt: skip
        maps[0, h, w] += sum1
        maps[1, h, w] += sum2
        if w < end:
            maps[2, h, w] += product1
        if h < bottom:
            maps[3, h, w] += product2
            if w < end:
                maps[4, h, w] += product3
            if w > 0:
                maps[5, h, w] += product4


@part
def add_channels(row, center, sums):
    """sums[0], sums[1] += x - center and its square, of a row of pixels."""
    channels = center.size
    whole = channels // LANES * LANES
    for c in range(0, whole, LANES):
        centers, sums1, sums2 = load(center, c), splat(ZERO), splat(ZERO)
        for i in range(c, row.size, channels):
            d = load(row, i) - centers
            sums1 += d
            sums2 = fused(d, d, sums2)
        keep(sums[0], c, load(sums[0], c) + sums1)
        keep(sums[1], c, load(sums[1], c) + sums2)
    for c in range(whole, channels):
        sum1 = sum2 = ZERO
        for i in range(c, row.size, channels):
            deviation = widen(row[i]) - center[c]
            sum1 += deviation
            sum2 = fused(deviation, deviation, sum2)
        sums[0, c] += sum1
        sums[1, c] += sum2


@part
def add_task(like, x, center, map_center, partial, moments, N, C, H, W, images, rows, task):
    """Sums of some rows of some images: a part of partial [image chunks, maps, H, W], and moments[task]."""
    chunk, first = task // -(-H // rows), task % -(-H // rows) * rows
    last = min(first + rows, H)
    x, map_center = memory(x, (N, H, W, C), like), memory(map_center, 1, np.float32)[0]
    maps, has_channels = partial[chunk], center != 0
    center = memory(center, C, np.float32)
    maps[:, first:last] = 0
    for n in range(chunk * images, min(chunk * images + images, N)):
        for h in range(first, last):
            if maps.shape[0] == 6:
                add_products(x, map_center, n, h, maps)
            elif C == 3:  # a constant, which makes the pixels of an image the lanes
                add_sums(x, map_center, n, h, maps, 3)
            else:
                add_sums(x, map_center, n, h, maps, C)
            if has_channels:
                add_channels(x[n, h].ravel(), center, moments[task])


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
        constant, factor = dmaps[0, h, w], TWO * dmaps[1, h, w]
        for c in range(channels):
            here = widen(x[n, h, w, c])
            value = widen(dy[n, h, w, c]) + fused(factor, here - center, constant)
            if has_channels:
                value += fused(slope[c], here - mean[c], offset[c])
            row[w, c] = value


@part
def pull_products(x, center, dmaps, n, h, dx):
    """dx [W * C] += the gradient through products, of row h of image n. What is beyond the edge has the weight zero."""
    height, width, channels = x.shape[1:]
    bottom, end, flat = height - 1, width - 1, x.ravel()
    up, down = max(h - 1, 0), min(h + 1, bottom)
    above, row, below = (n * height + up) * width, (n * height + h) * width, (n * height + down) * width
    whole, centers = channels // LANES * LANES, splat(center)
    for w in range(width):
        left, right = max(w - 1, 0), min(w + 1, end)
        has_up, has_down, has_left, has_right = h > 0, h < bottom, w > 0, w < end
        to_right = dmaps[2, h, w] if has_right else ZERO
        to_left = dmaps[2, h, left] if has_left else ZERO
        to_down = dmaps[3, h, w] if has_down else ZERO
        to_up = dmaps[3, up, w] if has_up else ZERO
        to_down_right = dmaps[4, h, w] if has_down and has_right else ZERO
        to_up_left = dmaps[4, up, left] if has_up and has_left else ZERO
        to_down_left = dmaps[5, h, w] if has_down and has_left else ZERO
        to_up_right = dmaps[5, up, right] if has_up and has_right else ZERO
        at_left, at_right = (row + left) * channels, (row + right) * channels
        at_up_left, at_up, at_up_right = (above + left) * channels, (above + w) * channels, (above + right) * channels
        at_down_left, at_down = (below + left) * channels, (below + w) * channels
        at_down_right = (below + right) * channels
        for c in range(0, whole, LANES):
            total = load(dx, w * channels + c)
            total = fused(splat(to_left), load(flat, at_left + c) - centers, total)
            total = fused(splat(to_right), load(flat, at_right + c) - centers, total)
            total = fused(splat(to_up_left), load(flat, at_up_left + c) - centers, total)
            total = fused(splat(to_up), load(flat, at_up + c) - centers, total)
            total = fused(splat(to_up_right), load(flat, at_up_right + c) - centers, total)
            total = fused(splat(to_down_left), load(flat, at_down_left + c) - centers, total)
            total = fused(splat(to_down), load(flat, at_down + c) - centers, total)
            total = fused(splat(to_down_right), load(flat, at_down_right + c) - centers, total)
            keep(dx, w * channels + c, total)
        for c in range(whole, channels):
            value = dx[w * channels + c]
            value = fused(to_left, widen(flat[at_left + c]) - center, value)
            value = fused(to_right, widen(flat[at_right + c]) - center, value)
            value = fused(to_up_left, widen(flat[at_up_left + c]) - center, value)
            value = fused(to_up, widen(flat[at_up + c]) - center, value)
            value = fused(to_up_right, widen(flat[at_up_right + c]) - center, value)
            value = fused(to_down_left, widen(flat[at_down_left + c]) - center, value)
            value = fused(to_down, widen(flat[at_down + c]) - center, value)
            value = fused(to_down_right, widen(flat[at_down_right + c]) - center, value)
            dx[w * channels + c] = value


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
            pull_products(x, center, dmaps, n, h, row.ravel())
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
