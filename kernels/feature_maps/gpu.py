"""feature_maps in Triton: one read of x forward, one pass backward, deterministic two-stage sums.

A tile holds the same pixels and channels of one image after another: summed over its pixels in the end it is a share
of the channels' sums, summed over its channels a share of the maps. Neighbours come from the cache.
"""

import torch
import triton
import triton.language as tl

from ..common.channel_moments_gpu import combine
from ..common.launch import OPTIONS, cdiv, device_of, moments_gradients, pixel_tiles, power_of_two

COMBINE, COMBINE_P = 2048, 256  # partial sums in a tile, and at most of one map's pixel
WARPS = 8


@triton.jit
def load_deviation(x_ptr, center, h, w, c, live, height, width, C: tl.constexpr):
    """float32 [pixels, channels]: x - center at (h, w), and zero beyond the edge and where `live` is false."""
    inside = live & (h >= 0) & (h < height) & (w >= 0) & (w < width)
    mask = inside[:, None] & (c < C)[None, :]
    value = tl.load(x_ptr + (h * width + w)[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, value - center, 0.0)


@triton.jit
def fold(x, LANES: tl.constexpr):
    """[pixels, channels] -> [pixels, channels / LANES]: sums of neighbouring channels, which one thread holds."""
    return tl.sum(tl.reshape(x, (x.shape[0], x.shape[1] // LANES, LANES)), axis=2)


@triton.jit
def forward_kernel(
    x_ptr, center_ptr, map_center_ptr, channel_ptr, map_ptr, num_images, chunk, height, width, C: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, LANES: tl.constexpr, HAS_NEIGHBOURS: tl.constexpr,
    HAS_CHANNELS: tl.constexpr,
):  # fmt: skip
    # x: [num_images, height, width, C]; channel: float32 [image chunks * pixel tiles, 2, C];
    # map: float32 [image chunks * channel tiles, 2 or 6, height * width]
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    num_pixels = height * width
    live_p = p < num_pixels
    live_c = c < C
    h = p // width
    w = p % width
    map_center = tl.load(map_center_ptr)
    first = tl.program_id(2) * chunk
    x_ptr += first.to(tl.int64) * num_pixels * C
    sum1 = tl.zeros((BLOCK_P, BLOCK_C // LANES), tl.float32)
    sum2 = tl.zeros((BLOCK_P, BLOCK_C // LANES), tl.float32)
    if HAS_NEIGHBOURS:
        product1 = tl.zeros((BLOCK_P, BLOCK_C // LANES), tl.float32)
        product2 = tl.zeros((BLOCK_P, BLOCK_C // LANES), tl.float32)
        product3 = tl.zeros((BLOCK_P, BLOCK_C // LANES), tl.float32)
        product4 = tl.zeros((BLOCK_P, BLOCK_C // LANES), tl.float32)
    if HAS_CHANNELS:
        center = tl.load(center_ptr + c, mask=live_c, other=0.0)[None, :]
        shifted1 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        shifted2 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for _ in range(0, tl.minimum(num_images - first, chunk)):
        live = live_p[:, None] & live_c[None, :]
        value = tl.load(x_ptr + p[:, None] * C + c[None, :], mask=live, other=0.0).to(tl.float32)
        here = tl.where(live, value - map_center, 0.0)
        sum1 += fold(here, LANES)
        sum2 += fold(here * here, LANES)
        if HAS_NEIGHBOURS:
            product1 += fold(here * load_deviation(x_ptr, map_center, h, w + 1, c, live_p, height, width, C), LANES)
            product2 += fold(here * load_deviation(x_ptr, map_center, h + 1, w, c, live_p, height, width, C), LANES)
            product3 += fold(here * load_deviation(x_ptr, map_center, h + 1, w + 1, c, live_p, height, width, C), LANES)
            product4 += fold(here * load_deviation(x_ptr, map_center, h + 1, w - 1, c, live_p, height, width, C), LANES)
        if HAS_CHANNELS:
            shifted = tl.where(live, value - center, 0.0)
            shifted1 += shifted
            shifted2 += shifted * shifted
        x_ptr += num_pixels * C
    if HAS_CHANNELS:
        channel_ptr += (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * (2 * C) + c
        tl.store(channel_ptr, tl.sum(shifted1, axis=0), mask=live_c)
        tl.store(channel_ptr + C, tl.sum(shifted2, axis=0), mask=live_c)
    NUM_MAPS: tl.constexpr = 6 if HAS_NEIGHBOURS else 2
    map_ptr += (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * NUM_MAPS * num_pixels + p
    tl.store(map_ptr, tl.sum(sum1, axis=1), mask=live_p)
    tl.store(map_ptr + num_pixels, tl.sum(sum2, axis=1), mask=live_p)
    if HAS_NEIGHBOURS:
        tl.store(map_ptr + 2 * num_pixels, tl.sum(product1, axis=1), mask=live_p)
        tl.store(map_ptr + 3 * num_pixels, tl.sum(product2, axis=1), mask=live_p)
        tl.store(map_ptr + 4 * num_pixels, tl.sum(product3, axis=1), mask=live_p)
        tl.store(map_ptr + 5 * num_pixels, tl.sum(product4, axis=1), mask=live_p)


@triton.jit
def combine_maps_kernel(partial_ptr, map_ptr, num_partials, size, BLOCK_P: tl.constexpr, BLOCK_M: tl.constexpr):
    # partial: float32 [num_partials, size]; map: float32 [size]
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live_m = m < size
    total = tl.zeros((BLOCK_P, BLOCK_M), tl.float32)
    for begin in range(0, num_partials, BLOCK_P):
        p = begin + tl.arange(0, BLOCK_P)
        live = (p < num_partials)[:, None] & live_m[None, :]
        total += tl.load(partial_ptr + p.to(tl.int64)[:, None] * size + m[None, :], mask=live, other=0.0)
    tl.store(map_ptr + m, tl.sum(total, axis=0), mask=live_m)


@triton.jit
def load_weight(dmap_ptr, h, w, live, height, width):
    """float32 [pixels, 1]: the gradient of a map at (h, w), and zero beyond the edge."""
    inside = live & (h >= 0) & (h < height) & (w >= 0) & (w < width)
    return tl.load(dmap_ptr + h * width + w, mask=inside, other=0.0)[:, None]


@triton.jit
def pull_pair(
    x_ptr, center, dmap_ptr, DOWN: tl.constexpr, RIGHT: tl.constexpr, h, w, c, live, height, width, C: tl.constexpr
):
    """float32 [pixels, channels]: the share of dx through one product. A pair's weight stands at its first pixel."""
    after = load_deviation(x_ptr, center, h + DOWN, w + RIGHT, c, live, height, width, C)
    before = load_deviation(x_ptr, center, h - DOWN, w - RIGHT, c, live, height, width, C)
    weight_before = load_weight(dmap_ptr, h - DOWN, w - RIGHT, live, height, width)
    return load_weight(dmap_ptr, h, w, live, height, width) * after + weight_before * before


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, dx_ptr, map_center_ptr, mean_ptr, dmean_ptr, dvar_ptr, dmap_ptr, scale, height, width,
    C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, HAS_DY: tl.constexpr, HAS_NEIGHBOURS: tl.constexpr,
    HAS_CHANNELS: tl.constexpr,
):  # fmt: skip
    # dy, x, dx: [num_images, height, width, C]; dmap: float32 [2 or 6, height * width]; scale: 1 / rows
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    num_pixels = height * width
    live_p = p < num_pixels
    live_c = c < C
    h = p // width
    w = p % width
    base = tl.program_id(2).to(tl.int64) * num_pixels * C
    x_ptr += base
    center = tl.load(map_center_ptr)
    live = live_p[:, None] & live_c[None, :]
    at = p[:, None] * C + c[None, :]
    value = tl.load(x_ptr + at, mask=live, other=0.0).to(tl.float32)
    slope = 2 * load_weight(dmap_ptr + num_pixels, h, w, live_p, height, width)
    dx = tl.fma(value - center, slope, load_weight(dmap_ptr, h, w, live_p, height, width))
    if HAS_CHANNELS:
        mean = tl.load(mean_ptr + c, mask=live_c, other=0.0)[None, :]
        offset = (tl.load(dmean_ptr + c, mask=live_c, other=0.0) * scale)[None, :]
        slope = (tl.load(dvar_ptr + c, mask=live_c, other=0.0) * (2 * scale))[None, :]
        dx += tl.fma(value - mean, slope, offset)
    if HAS_NEIGHBOURS:
        dmap_ptr += 2 * num_pixels
        dx += pull_pair(x_ptr, center, dmap_ptr, 0, 1, h, w, c, live_p, height, width, C)
        dx += pull_pair(x_ptr, center, dmap_ptr + num_pixels, 1, 0, h, w, c, live_p, height, width, C)
        dx += pull_pair(x_ptr, center, dmap_ptr + 2 * num_pixels, 1, 1, h, w, c, live_p, height, width, C)
        dx += pull_pair(x_ptr, center, dmap_ptr + 3 * num_pixels, 1, -1, h, w, c, live_p, height, width, C)
    if HAS_DY:
        dx += tl.load(dy_ptr + base + at, mask=live, other=0.0).to(tl.float32)
    tl.store(dx_ptr + base + at, dx.to(dx_ptr.dtype.element_ty), mask=live)


class FeatureMaps(torch.autograd.Function):
    """x, maps, mean, var of `feature_maps`; x is float32, bfloat16 or float16, center None without channel moments."""

    @staticmethod
    def forward(ctx, x, center, map_center, has_neighbours):
        num_images, channels, height, width = x.shape
        has_channels = center is not None
        tiles = pixel_tiles(num_images, channels, height * width)
        shape = (6 if has_neighbours else 2, height, width)
        num_partials = tiles.num_chunks * tiles.num_columns
        partial = torch.empty(num_partials, *shape, dtype=torch.float32, device=x.device)
        maps = torch.empty(shape, dtype=torch.float32, device=x.device)
        mean = var = None
        sums = partial  # never written without channels
        if has_channels:
            center = center.contiguous()
            sums = torch.empty(tiles.num_chunks * tiles.num_tiles, 2, channels, dtype=torch.float32, device=x.device)
        with device_of(x):
            forward_kernel[(tiles.num_tiles, tiles.num_columns, tiles.num_chunks)](
                x, center if has_channels else map_center, map_center, sums, partial, num_images, tiles.chunk, height,
                width, C=channels, BLOCK_P=tiles.block_p, BLOCK_C=tiles.block_c,
                LANES=min(tiles.block_c, 16 // x.element_size()), HAS_NEIGHBOURS=has_neighbours,
                HAS_CHANNELS=has_channels, num_warps=WARPS, **OPTIONS,
            )  # fmt: skip
            block_p = min(power_of_two(num_partials), COMBINE_P)
            combine_maps_kernel[(cdiv(maps.numel(), COMBINE // block_p),)](
                partial, maps, num_partials, maps.numel(), BLOCK_P=block_p, BLOCK_M=COMBINE // block_p, num_warps=4,
                **OPTIONS,
            )  # fmt: skip
            if has_channels:
                mean, var = combine([sums], [center], [num_images * height * width], 2)
        ctx.save_for_backward(x, map_center, mean)
        ctx.set_materialize_grads(False)
        return x, maps, mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dmaps, dmean, dvar):
        x, map_center, mean = ctx.saved_tensors
        num_images, channels, height, width = x.shape
        tiles = pixel_tiles(num_images, channels, height * width)
        mean = map_center if mean is None else mean
        has_channels, dmean, dvar = moments_gradients(dmean, dvar, mean)
        if dmaps is None:
            dmaps = torch.zeros(2, height, width, dtype=torch.float32, device=x.device)
        dmaps = dmaps.contiguous()
        has_dy = dy is not None
        if has_dy:
            dy = dy.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        with device_of(x):
            backward_kernel[(tiles.num_tiles, tiles.num_columns, num_images)](
                dy if has_dy else x, x, dx, map_center, mean, dmean, dvar, dmaps,
                1 / (num_images * height * width), height, width, C=channels, BLOCK_P=tiles.block_p,
                BLOCK_C=tiles.block_c, HAS_DY=has_dy, HAS_NEIGHBOURS=dmaps.shape[0] == 6, HAS_CHANNELS=has_channels,
                num_warps=WARPS, **OPTIONS,
            )  # fmt: skip
        return dx, None, None, None
