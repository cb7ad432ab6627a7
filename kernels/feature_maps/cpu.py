"""feature_maps on the CPU in float32: x is read once forward, and dy and x once backward.

A task takes some rows of some images, so that a row is still in the cache when it is the neighbour of another one.
"""

import numpy as np
import torch
from numba import prange

from ..common.bfloat16 import round_, wide_of, widen
from ..common.launch import cdiv
from ..common.threads import NUM_CHUNKS, inline, kernel, lanes, launch

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


@inline
def add_sums(x, center, n, h, maps, channels):
    """maps[0 : 2, h] += the sums of row h of image n."""
    for w in range(x.shape[2]):
        sum1, sum2 = sum_pixel(x, center, n, h, w, channels)
        maps[0, h, w] += sum1
        maps[1, h, w] += sum2


@inline
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


@inline
def add_channels(x, center, n, h, sums, channels):
    """sums[0 : 2, w] += x - center and its square, of row h of image n."""
    for w in range(x.shape[2]):
        for c in range(channels):
            deviation = widen(x[n, h, w, c]) - center[c]
            sums[0, w, c] += deviation
            sums[1, w, c] += deviation * deviation


@kernel
def forward_kernel(x, center, map_center, maps, partial, mean, var, moments, images, rows, has_channels):
    # x: [N, H, W, C]; maps: [2 or 6, H, W]; partial: [image chunks, 2 or 6, H, W]; moments: [tasks, 2, C]
    N, H, W, C = x.shape
    num_chunks = -(-H // rows)
    for task in prange(len(partial) * num_chunks):
        part, first = partial[task // num_chunks], task % num_chunks * rows
        last = min(first + rows, H)
        part[:, first:last] = 0
        sums = np.zeros((2, W if has_channels else 0, C), np.float32)
        begin = task // num_chunks * images
        for n in range(begin, min(begin + images, N)):
            for h in range(first, last):
                if C == 3:  # a constant, which makes the pixels of an image the lanes
                    add_sums(x, map_center[0], n, h, part, 3)
                else:
                    add_sums(x, map_center[0], n, h, part, C)
                if len(part) == 6:
                    add_products(x, map_center[0], n, h, part)
                if has_channels:
                    if C == 3:
                        add_channels(x, center, n, h, sums, 3)
                    else:
                        add_channels(x, center, n, h, sums, C)
        if has_channels:
            moments[task] = 0
            for k in range(2):
                for w in range(W):
                    for c in range(C):
                        moments[task, k, c] += sums[k, w, c]
    for row in prange(len(maps[0])):
        for k in range(len(maps)):
            maps[k, row] = partial[0, k, row]
            for chunk in range(1, len(partial)):
                for w in range(W):
                    maps[k, row, w] += partial[chunk, k, row, w]
    if has_channels:
        for task in range(1, len(moments)):
            for k in range(2):
                for c in range(C):
                    moments[0, k, c] += moments[task, k, c]
        scale = np.float32(1 / (N * H * W))
        for c in range(C):
            shifted = moments[0, 0, c] * scale
            mean[c] = center[c] + shifted
            square = moments[0, 1, c] * scale - shifted * shifted
            var[c] = np.float32(0) if square < 0 else square  # NaN stays NaN


@inline
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


@inline
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


@kernel
def backward_kernel(dy, x, map_center, offset, slope, mean, dmaps, dx, rows, has_channels):
    # dy, x, dx: [N, H, W, C]; offset, slope, mean: [C]; dmaps: [2 or 6, H, W]
    N, H, W, C = x.shape
    center = map_center[0]
    num_chunks = -(-H // rows)
    for task in prange(N * num_chunks):
        n, first = task // num_chunks, task % num_chunks * rows
        buffer = np.empty((W, C), np.float32)
        for h in range(first, min(first + rows, H)):
            row = wide_of(dx[n, h], buffer)
            if C == 3:
                pull_sums(dy, x, center, offset, slope, mean, dmaps, n, h, row, 3, has_channels)
            else:
                pull_sums(dy, x, center, offset, slope, mean, dmaps, n, h, row, C, has_channels)
            if len(dmaps) == 6:
                pull_products(x, center, dmaps, n, h, row)
            round_(row.ravel(), dx[n, h].ravel())


def split(shape: torch.Size, num_maps: int) -> tuple[int, int]:
    """Images and rows a task, for about TASK elements; images enough that their maps are small beside them."""
    num_images, channels, height, width = shape
    tasks = min(NUM_CHUNKS, cdiv(num_images * channels * height * width, TASK))
    images = min(num_images, max(cdiv(32 * num_maps, channels), cdiv(num_images, tasks)))
    return images, cdiv(height, cdiv(tasks, cdiv(num_images, images)))


class FeatureMaps(torch.autograd.Function):
    """x, maps, mean, var of `feature_maps` for float32 x on the CPU; center is None if there are no channel moments."""

    @staticmethod
    def forward(ctx, x, center, map_center, has_neighbours):
        num_images, channels, height, width = x.shape
        has_channels = center is not None
        num_maps = 6 if has_neighbours else 2
        images, rows = split(x.shape, num_maps)
        maps = torch.empty(num_maps, height, width)
        partial = torch.empty(cdiv(num_images, images), *maps.shape)
        moments = torch.empty(len(partial) * cdiv(height, rows), 2, channels)
        map_center = map_center.reshape(1)
        center = center.contiguous() if has_channels else map_center
        mean, var = (torch.empty(channels), torch.empty(channels)) if has_channels else (None, None)
        outputs = (mean, var) if has_channels else (map_center, map_center)
        launch(
            forward_kernel, x.permute(0, 2, 3, 1), center, map_center, maps, partial, *outputs, moments, images, rows,
            has_channels,
        )  # fmt: skip
        ctx.save_for_backward(x, map_center, mean)
        ctx.set_materialize_grads(False)
        return x, maps, mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dmaps, dmean, dvar):
        x, map_center, mean = ctx.saved_tensors
        num_images, channels, height, width = x.shape
        num_rows = num_images * height * width
        has_channels = dmean is not None or dvar is not None
        zeros = torch.zeros(channels)
        dy = torch.zeros_like(x) if dy is None else dy.contiguous(memory_format=torch.channels_last)
        dmaps = torch.zeros(2, height, width) if dmaps is None else dmaps.contiguous()
        offset = zeros if dmean is None else dmean / num_rows
        slope = zeros if dvar is None else dvar * (2 / num_rows)
        dx = torch.empty_like(x)
        rows = cdiv(height, cdiv(NUM_CHUNKS, num_images))
        dy_rows, x_rows, dx_rows = (t.permute(0, 2, 3, 1) for t in (dy, x, dx))
        launch(
            backward_kernel, dy_rows, x_rows, map_center, offset, slope, mean if has_channels else zeros, dmaps,
            dx_rows, rows, has_channels,
        )  # fmt: skip
        return dx, None, None, None
