"""frozen_batch_norm_pool in Triton: one read of x forward, one pass backward, deterministic two-stage sums.

Beside y the forward keeps a byte an output, the place of its maximum in the 3x3 window (3 * row + column), or 9 if the
ReLU cut it off. The backward gathers: every pixel asks the windows over it, at most four, whether it was the maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ..common.channel_moments_gpu import combine
from ..common.launch import OPTIONS, cdiv, device_of, moments_gradients, power_of_two
from .definition import output_size

WARPS = 4
_TILE = 1024  # elements; 8 a thread
_PROGRAMS = 2048


@dataclass(frozen=True)
class PoolTiles:
    """Tiles [block_p, block_c]: of image columns forward, where a program takes `chunk` rows; of pixels backward."""

    block_p: int
    block_c: int
    num_columns: int
    num_strips: int
    chunk: int
    num_chunks: int
    num_tiles: int


def pool_tiles(num_images: int, channels: int, out_height: int, out_width: int) -> PoolTiles:
    """Tiles of 1024 elements of y, 8 to 64 channels wide, and such chunks that about 2048 programs share a big one."""
    block_c = min(max(power_of_two(channels), 8), 64)
    block_p = _TILE // block_c
    num_columns = cdiv(channels, block_c)
    num_strips = cdiv(num_images * out_width, block_p)
    chunk = cdiv(out_height, max(1, _PROGRAMS // (num_columns * num_strips)))
    num_tiles = cdiv(num_images * out_height * out_width, block_p)
    return PoolTiles(block_p, block_c, num_columns, num_strips, chunk, cdiv(out_height, chunk), num_tiles)


@triton.jit
def _take(best, place, x, live, scale, shift, PLACE: tl.constexpr):
    """The maximum and its place after one more value of a window; a NaN wins."""
    y = tl.where(live, tl.fma(x, scale, shift), 0.0)
    wins = (y > best) | (y != y)
    return tl.where(wins, y, best), tl.where(wins, PLACE, place)


@triton.jit
def _pool_row(x_ptr, live, has_left, has_right, scale, shift, C: tl.constexpr):
    """Maximum over three pixels of a row, at least 0, its column in the window, and the pixels that are new to it."""
    left = tl.load(x_ptr - C, mask=live & has_left, other=0.0).to(tl.float32)
    center = tl.load(x_ptr, mask=live, other=0.0).to(tl.float32)
    right = tl.load(x_ptr + C, mask=live & has_right, other=0.0).to(tl.float32)
    best = tl.zeros(center.shape, tl.float32)
    place = tl.full(center.shape, 9, tl.int32)
    best, place = _take(best, place, left, live & has_left, scale, shift, 0)
    best, place = _take(best, place, center, live, scale, shift, 1)
    best, place = _take(best, place, right, live & has_right, scale, shift, 2)
    return best, place, center, right


@triton.jit
def _add(sum1, sum2, x, live, center):
    """Sums of x - center and of its square, after one more tile."""
    deviation = tl.where(live, x - center, 0.0)
    return sum1 + deviation, sum2 + deviation * deviation


@triton.jit
def forward_kernel(
    x_ptr, y_ptr, argmax_ptr, scale_ptr, shift_ptr, center_ptr, output_center_ptr, partial_ptr, output_partial_ptr,
    num_positions, height, width, chunk, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    HAS_OUTPUT: tl.constexpr,
):  # fmt: skip
    # x: [N, height, width, C]; y, argmax: [N, ceil(height / 2), ceil(width / 2), C]; partials: [num_programs, 2, C]
    # A position is a column of an image of y; a program goes down `chunk` rows of its positions.
    out_height = (height + 1) // 2
    out_width = (width + 1) // 2
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    live_c = (c < C)[None, :]
    scale = tl.load(scale_ptr + c, mask=c < C, other=0.0)[None, :]
    shift = tl.load(shift_ptr + c, mask=c < C, other=0.0)[None, :]
    center = tl.load(center_ptr + c, mask=c < C, other=0.0)[None, :]
    output_center = tl.load(output_center_ptr + c, mask=c < C, other=0.0)[None, :]
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    n = (p // out_width).to(tl.int64)
    j = p % out_width
    has_left = (j > 0)[:, None]
    has_right = (2 * j + 1 < width)[:, None]
    rows = tl.where(p < num_positions, height, 0)  # of x, at this position
    x_ptr += ((n * height * width + 2 * j) * C)[:, None] + c[None, :]
    out = ((n * out_height * out_width + j) * C)[:, None] + c[None, :]
    y_ptr += out
    argmax_ptr += out
    sum1 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    sum2 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    output_sum1 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    output_sum2 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    first = tl.program_id(1) * chunk
    # The window's upper row is the lower row of the window above: carried from one to the next.
    live = (2 * first - 1 < tl.where(first > 0, rows, -2))[:, None] & live_c
    upper, upper_place, _, _ = _pool_row(
        x_ptr + (2 * first - 1) * width * C, live, has_left, has_right, scale, shift, C
    )
    for step in range(0, chunk):
        i = first + step
        live = (2 * i < rows)[:, None] & live_c
        best, place = upper, upper_place
        row, row_place, even, odd = _pool_row(x_ptr + 2 * i * width * C, live, has_left, has_right, scale, shift, C)
        wins = (row > best) | (row != row)
        best, place = tl.where(wins, row, best), tl.where(wins, row_place + 3, place)
        sum1, sum2 = _add(sum1, sum2, even, live, center)
        sum1, sum2 = _add(sum1, sum2, odd, live & has_right, center)
        below = (2 * i + 1 < rows)[:, None] & live_c
        upper, upper_place, even, odd = _pool_row(
            x_ptr + (2 * i + 1) * width * C, below, has_left, has_right, scale, shift, C
        )
        wins = (upper > best) | (upper != upper)
        best, place = tl.where(wins, upper, best), tl.where(wins, upper_place + 6, place)
        sum1, sum2 = _add(sum1, sum2, even, below, center)
        sum1, sum2 = _add(sum1, sum2, odd, below & has_right, center)
        y = best.to(y_ptr.dtype.element_ty)
        if HAS_OUTPUT:
            output_sum1, output_sum2 = _add(output_sum1, output_sum2, y.to(tl.float32), live, output_center)
        tl.store(y_ptr + i * out_width * C, y, mask=live)
        tl.store(argmax_ptr + i * out_width * C, place.to(tl.uint8), mask=live)
    at = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * (2 * C) + c
    tl.store(partial_ptr + at, tl.sum(sum1, axis=0), mask=c < C)
    tl.store(partial_ptr + at + C, tl.sum(sum2, axis=0), mask=c < C)
    if HAS_OUTPUT:
        tl.store(output_partial_ptr + at, tl.sum(output_sum1, axis=0), mask=c < C)
        tl.store(output_partial_ptr + at + C, tl.sum(output_sum2, axis=0), mask=c < C)


@triton.jit
def _window(dy_ptr, argmax_ptr, live):
    """Gradient and place of the maximum of a tile of windows."""
    dy = tl.load(dy_ptr, mask=live, other=0.0).to(tl.float32)
    return dy, tl.load(argmax_ptr, mask=live, other=9).to(tl.int32)


@triton.jit
def _line(mean_ptr, dmean_ptr, dvar_ptr, c, live_c, count):
    """What moments' gradients bring an element x: offset + slope * (x - mean). Returns mean, offset and slope."""
    mean = tl.load(mean_ptr + c, mask=live_c, other=0.0)[None, :]
    offset = (tl.load(dmean_ptr + c, mask=live_c, other=0.0) / count)[None, :]
    slope = (tl.load(dvar_ptr + c, mask=live_c, other=0.0) * 2 / count)[None, :]
    return mean, offset, slope


@triton.jit
def _pick(dy, place, extra, PLACE: tl.constexpr):
    """The windows' gradient for their pixel at PLACE."""
    return tl.where(place == PLACE, dy + extra, 0.0)


@triton.jit
def backward_kernel(
    x_ptr, dy_ptr, argmax_ptr, dx_ptr, scale_ptr, shift_ptr, mean_ptr, dmean_ptr, dvar_ptr, y_mean_ptr, dy_mean_ptr,
    dy_var_ptr, num_images, height, width, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    HAS_INPUT: tl.constexpr, HAS_OUTPUT: tl.constexpr,
):  # fmt: skip
    # x, dx: [N, height, width, C]; dy, argmax: [N, ceil(height / 2), ceil(width / 2), C]
    # A program takes windows (i, j) and the pixels (2 i, 2 j) to (2 i + 1, 2 j + 1).
    out_height = (height + 1) // 2
    out_width = (width + 1) // 2
    num_windows = num_images * out_height * out_width
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    live_c = c < C
    scale = tl.load(scale_ptr + c, mask=live_c, other=0.0)[None, :]
    shift = tl.load(shift_ptr + c, mask=live_c, other=0.0)[None, :]
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    n = p // (out_height * out_width)
    i = p // out_width % out_height
    j = p % out_width
    live = (p < num_windows)[:, None] & live_c[None, :]
    has_right = (j + 1 < out_width)[:, None]  # a window to the right, and below
    has_below = (i + 1 < out_height)[:, None]
    at = (p.to(tl.int64) * C)[:, None] + c[None, :]
    dy_ptr += at
    argmax_ptr += at
    dy00, place00 = _window(dy_ptr, argmax_ptr, live)
    dy01, place01 = _window(dy_ptr + C, argmax_ptr + C, live & has_right)
    dy10, place10 = _window(dy_ptr + out_width * C, argmax_ptr + out_width * C, live & has_below)
    corner = (out_width + 1) * C
    dy11, place11 = _window(dy_ptr + corner, argmax_ptr + corner, live & has_right & has_below)
    at = (((n.to(tl.int64) * height + 2 * i) * width + 2 * j) * C)[:, None] + c[None, :]
    x_ptr += at
    dx_ptr += at
    if HAS_INPUT:
        mean, offset, slope = _line(mean_ptr, dmean_ptr, dvar_ptr, c, live_c, num_images * height * width)
    if HAS_OUTPUT:
        y_mean, y_offset, y_slope = _line(y_mean_ptr, dy_mean_ptr, dy_var_ptr, c, live_c, num_windows)
    for below in tl.static_range(2):
        for right in tl.static_range(2):
            inside = live & ((2 * i + below < height) & (2 * j + right < width))[:, None]
            step = (below * width + right) * C
            x = tl.load(x_ptr + step, mask=inside, other=0.0).to(tl.float32)
            extra = tl.zeros(x.shape, tl.float32)
            if HAS_OUTPUT:  # where the pixel is the maximum, y is its own; elsewhere nobody picks it
                y = tl.fma(x, scale, shift).to(dx_ptr.dtype.element_ty).to(tl.float32)  # as it was stored
                extra = tl.fma(y - y_mean, y_slope, y_offset)
            gradient = _pick(dy00, place00, extra, 4 + 3 * below + right)
            if right:
                gradient += _pick(dy01, place01, extra, 3 + 3 * below)
            if below:
                gradient += _pick(dy10, place10, extra, 1 + right)
            if right and below:
                gradient += _pick(dy11, place11, extra, 0)
            dx = gradient * scale
            if HAS_INPUT:
                dx += tl.fma(x - mean, slope, offset)
            tl.store(dx_ptr + step, dx.to(dx_ptr.dtype.element_ty), mask=inside)


class FrozenBatchNormPool(torch.autograd.Function):
    """Outputs of `frozen_batch_norm_pool` from checked arguments; x of float32, bfloat16 or float16."""

    @staticmethod
    def forward(ctx, x, scale, shift, center, output_center):
        num_images, channels, height, width = x.shape
        shape = (num_images, channels, output_size(height), output_size(width))
        tiles = pool_tiles(num_images, channels, *shape[2:])
        layout = {"device": x.device, "memory_format": torch.channels_last}
        y = torch.empty(shape, dtype=x.dtype, **layout)
        argmax = torch.empty(shape, dtype=torch.uint8, **layout)
        centers = [center] if output_center is None else [center, output_center]
        num_partials = tiles.num_strips * tiles.num_chunks
        partials = [torch.empty(num_partials, 2, channels, dtype=torch.float32, device=x.device) for _ in centers]
        with device_of(x):
            forward_kernel[(tiles.num_strips, tiles.num_chunks, tiles.num_columns)](
                x, y, argmax, scale, shift, center, centers[-1], partials[0], partials[-1], num_images * shape[3],
                height, width, tiles.chunk, C=channels, BLOCK_P=tiles.block_p, BLOCK_C=tiles.block_c,
                HAS_OUTPUT=output_center is not None, num_warps=WARPS, **OPTIONS,
            )  # fmt: skip
            rows = [x.numel() // channels, y.numel() // channels]
            moments = combine(partials, centers, rows[: len(centers)], 2)
        ctx.save_for_backward(x, argmax, scale, shift, *moments[::2])
        ctx.set_materialize_grads(False)
        return y, *moments

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, *dmoments):
        x, argmax, scale, shift, *means = ctx.saved_tensors
        num_images, channels, height, width = x.shape
        tiles = pool_tiles(num_images, channels, *argmax.shape[2:])
        dy = torch.zeros_like(argmax, dtype=x.dtype) if dy is None else dy.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        has_input, *of_input = moments_gradients(dmoments[0], dmoments[1], scale)
        dmean, dvar = dmoments[2:] or (None, None)
        has_output, *of_output = moments_gradients(dmean, dvar, scale)
        with device_of(x):
            backward_kernel[(tiles.num_tiles, tiles.num_columns)](
                x, dy, argmax, dx, scale, shift, means[0], *of_input, means[-1], *of_output, num_images, height,
                width, C=channels, BLOCK_P=tiles.block_p, BLOCK_C=tiles.block_c, HAS_INPUT=has_input,
                HAS_OUTPUT=has_output, num_warps=WARPS, **OPTIONS,
            )  # fmt: skip
        return dx, None, None, None, None
