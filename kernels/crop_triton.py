"""crop in Triton: forward and exact adjoint are both gathers, with integer weights that every device computes alike.

Along one axis a window of `length` source positions p becomes SIZE outputs o. Their centres lie (2 p + 1) SIZE and
(2 o + 1) length, in units of 1 / (2 SIZE) of a source pixel, and the filter is a triangle of half-width
reach = 2 max(length, SIZE). So the weight of p in o is the integer max(reach - |distance|, 0), divided by the sum over
the positions that exist: exact up to that division, for any size.
"""

import torch
import triton
import triton.language as tl

from .launch import OPTIONS, cdiv, device_of

BLOCK, WARPS = 256, 8  # one pixel a thread
CHANNELS = 3  # a program's share: a thread holds a pixel's channels, so indices and weights are computed once


@triton.jit
def _axis(window_ptr, axis, extent):
    """start, length, and the part [low, high) of the window that is inside the image."""
    start = tl.load(window_ptr + axis)
    length = tl.load(window_ptr + axis + 2)
    return start, length, tl.maximum(-start, 0), tl.minimum(length, extent - start)


@triton.jit
def _roll(window_ptr, axis, SIZE: tl.constexpr):
    """The axis' circular shift in [0, SIZE)."""
    return (tl.load(window_ptr + axis + 5) % SIZE + SIZE) % SIZE


@triton.jit
def _overlap(p, o, length, SIZE: tl.constexpr):
    """Unnormalised weight of source position p in output o."""
    return tl.maximum(2 * tl.maximum(length, SIZE) - tl.abs((2 * p + 1) * SIZE - (2 * o + 1) * length), 0)


@triton.jit
def _first(center, reach, other, spacing):
    """The first index i >= 0 whose centre, i * spacing + other, lies within reach of `center` (both ends excluded)."""
    return (tl.maximum(center - reach - other, -spacing) + spacing) // spacing


@triton.jit
def _total(o, length, low, high, SIZE: tl.constexpr):
    """Sum of _overlap over p in [low, high): two arithmetic series, left and right of the triangle's top."""
    reach = 2 * tl.maximum(length, SIZE)
    center = (2 * o + 1) * length
    first = tl.maximum(_first(center, reach, SIZE, 2 * SIZE), low)
    last = tl.maximum(tl.minimum((center + reach - SIZE) // (2 * SIZE), high - 1), first - 1)
    top = tl.minimum(tl.maximum((center + SIZE) // (2 * SIZE) - 1, first - 1), last)
    left = (top - first + 1) * (_overlap(first, o, length, SIZE) + _overlap(top, o, length, SIZE))
    right = (last - top) * (_overlap(top + 1, o, length, SIZE) + _overlap(last, o, length, SIZE))
    return (left + right) // 2


@triton.jit
def forward_kernel(
    images_ptr,
    windows_ptr,
    gain_ptr,
    offset_ptr,
    output_ptr,
    height,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    C: tl.constexpr,
    SIZE: tl.constexpr,
    SHARED: tl.constexpr,
    HAS_GAIN: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # images: [N, C, height, width], any strides; windows: int32 [N or 1, 7]; output: [N, SIZE, SIZE, C]
    tl.static_assert(CHANNELS == 3)
    BLOCKS: tl.constexpr = (SIZE * SIZE + BLOCK - 1) // BLOCK
    n = (tl.program_id(0) // BLOCKS).to(tl.int64)
    pixel = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    live = pixel < SIZE * SIZE
    window_ptr = windows_ptr if SHARED else windows_ptr + n * 7
    top, rows, low_y, high_y = _axis(window_ptr, 0, height)
    left, columns, low_x, high_x = _axis(window_ptr, 1, width)
    o_y = (pixel // SIZE - _roll(window_ptr, 0, SIZE) + SIZE) % SIZE
    o_x = (pixel % SIZE - _roll(window_ptr, 1, SIZE) + SIZE) % SIZE
    o_x = tl.where(tl.load(window_ptr + 4) != 0, SIZE - 1 - o_x, o_x)
    reach_y = 2 * tl.maximum(rows, SIZE)
    reach_x = 2 * tl.maximum(columns, SIZE)
    first_y = tl.maximum(_first((2 * o_y + 1) * rows, reach_y, SIZE, 2 * SIZE), low_y)
    first_x = tl.maximum(_first((2 * o_x + 1) * columns, reach_x, SIZE, 2 * SIZE), low_x)
    total_y = tl.maximum(_total(o_y, rows, low_y, high_y, SIZE), 1).to(tl.float32)
    total_x = tl.maximum(_total(o_x, columns, low_x, high_x, SIZE), 1).to(tl.float32)
    c = tl.program_id(1).to(tl.int64) * CHANNELS
    images_ptr += n * stride_n + c * stride_c
    value0 = tl.zeros((BLOCK,), tl.float32)
    value1 = tl.zeros((BLOCK,), tl.float32)
    value2 = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, (reach_y + SIZE - 1) // SIZE):
        y = first_y + i
        weight_y = tl.div_rn(_overlap(y, o_y, rows, SIZE).to(tl.float32), total_y)
        live_y = live & (y < high_y)
        row_ptr = images_ptr + (top + y).to(tl.int64) * stride_h
        for j in range(0, (reach_x + SIZE - 1) // SIZE):
            x = first_x + j
            weight = weight_y * tl.div_rn(_overlap(x, o_x, columns, SIZE).to(tl.float32), total_x)
            here = live_y & (x < high_x) & (weight > 0)
            at = row_ptr + (left + x).to(tl.int64) * stride_w
            value0 += weight * tl.load(at, mask=here, other=0).to(tl.float32)
            if C > 1:
                value1 += weight * tl.load(at + stride_c, mask=here & (c + 1 < C), other=0).to(tl.float32)
            if C > 2:
                value2 += weight * tl.load(at + 2 * stride_c, mask=here & (c + 2 < C), other=0).to(tl.float32)
    out = output_ptr + n * (SIZE * SIZE * C) + pixel * C + c
    for k in tl.static_range(CHANNELS):
        value = value0 if k == 0 else (value1 if k == 1 else value2)
        if HAS_GAIN:
            value *= tl.load(gain_ptr + c + k, mask=c + k < C, other=0.0)
        if HAS_OFFSET:
            value += tl.load(offset_ptr + c + k, mask=c + k < C, other=0.0)
        tl.store(out + k, value.to(output_ptr.dtype.element_ty), mask=live & (c + k < C))


@triton.jit
def share_kernel(windows_ptr, share_ptr, height, width, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    # share: float32 [N or 1, 2, SIZE], one over the total weight of an output row or column, 0 where there is none
    n = tl.program_id(0).to(tl.int64)
    axis = tl.program_id(1)
    o = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    _, length, low, high = _axis(windows_ptr + n * 7, axis, tl.where(axis == 0, height, width))
    total = _total(o, length, low, high, SIZE)
    share = tl.div_rn(1.0, tl.maximum(total, 1).to(tl.float32))
    tl.store(share_ptr + (n * 2 + axis) * SIZE + o, tl.where(total > 0, share, 0.0), mask=o < SIZE)


@triton.jit
def backward_kernel(
    dout_ptr,
    windows_ptr,
    share_ptr,
    gain_ptr,
    dimages_ptr,
    height,
    width,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    C: tl.constexpr,
    SIZE: tl.constexpr,
    SHARED: tl.constexpr,
    HAS_GAIN: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # dout: [N, SIZE, SIZE, C]; dimages: [N, C, height, width], any strides
    tl.static_assert(CHANNELS == 3)
    num_blocks = (height * width + BLOCK - 1) // BLOCK
    n = (tl.program_id(0) // num_blocks).to(tl.int64)
    pixel = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    live = pixel < height * width
    window_ptr = windows_ptr if SHARED else windows_ptr + n * 7
    share_ptr = share_ptr if SHARED else share_ptr + n * (2 * SIZE)
    top, rows, low_y, high_y = _axis(window_ptr, 0, height)
    left, columns, low_x, high_x = _axis(window_ptr, 1, width)
    flip = tl.load(window_ptr + 4) != 0
    roll_y = _roll(window_ptr, 0, SIZE)
    roll_x = _roll(window_ptr, 1, SIZE)
    y = pixel // width - top
    x = pixel % width - left
    inside = live & (y >= low_y) & (y < high_y) & (x >= low_x) & (x < high_x)
    reach_y = 2 * tl.maximum(rows, SIZE)
    reach_x = 2 * tl.maximum(columns, SIZE)
    first_y = _first((2 * y + 1) * SIZE, reach_y, rows, 2 * rows)
    first_x = _first((2 * x + 1) * SIZE, reach_x, columns, 2 * columns)
    c = tl.program_id(1).to(tl.int64) * CHANNELS
    dout_ptr += n * (SIZE * SIZE * C) + c
    value0 = tl.zeros((BLOCK,), tl.float32)
    value1 = tl.zeros((BLOCK,), tl.float32)
    value2 = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, (reach_y + rows - 1) // rows):
        o_y = first_y + i
        live_y = inside & (o_y < SIZE)
        weight_y = _overlap(y, o_y, rows, SIZE).to(tl.float32) * tl.load(share_ptr + o_y, mask=live_y, other=0.0)
        row = (o_y + roll_y) % SIZE * SIZE
        for j in range(0, (reach_x + columns - 1) // columns):
            o_x = first_x + j
            live_x = live_y & (o_x < SIZE)
            weight_x = _overlap(x, o_x, columns, SIZE).to(tl.float32)
            weight = weight_y * (weight_x * tl.load(share_ptr + SIZE + o_x, mask=live_x, other=0.0))
            here = live_x & (weight > 0)
            at = dout_ptr + (row + (tl.where(flip, SIZE - 1 - o_x, o_x) + roll_x) % SIZE) * C
            value0 += weight * tl.load(at, mask=here, other=0.0).to(tl.float32)
            if C > 1:
                value1 += weight * tl.load(at + 1, mask=here & (c + 1 < C), other=0.0).to(tl.float32)
            if C > 2:
                value2 += weight * tl.load(at + 2, mask=here & (c + 2 < C), other=0.0).to(tl.float32)
    out = dimages_ptr + n * stride_n + (pixel // width).to(tl.int64) * stride_h + (pixel % width) * stride_w
    for k in tl.static_range(CHANNELS):
        value = value0 if k == 0 else (value1 if k == 1 else value2)
        if HAS_GAIN:
            value *= tl.load(gain_ptr + c + k, mask=c + k < C, other=0.0)
        tl.store(out + (c + k) * stride_c, value.to(dimages_ptr.dtype.element_ty), mask=live & (c + k < C))


class Crop(torch.autograd.Function):
    """`crop` of checked arguments, all on the images' device; windows: int32 and contiguous."""

    @staticmethod
    def forward(ctx, images, windows, size, gain, offset, dtype):
        num_images, channels, height, width = images.shape
        output = torch.empty(
            (num_images, channels, size, size), dtype=dtype, device=images.device, memory_format=torch.channels_last
        )
        shared = windows.shape[0] == 1
        gain, offset = (None if vector is None else vector.float().contiguous() for vector in (gain, offset))
        if output.numel():
            with device_of(images):
                forward_kernel[(num_images * cdiv(size * size, BLOCK), cdiv(channels, CHANNELS))](
                    images,
                    windows,
                    windows if gain is None else gain,
                    windows if offset is None else offset,
                    output,
                    height,
                    width,
                    *images.stride(),
                    C=channels,
                    SIZE=size,
                    SHARED=shared,
                    HAS_GAIN=gain is not None,
                    HAS_OFFSET=offset is not None,
                    CHANNELS=CHANNELS,
                    BLOCK=BLOCK,
                    num_warps=WARPS,
                    **OPTIONS,
                )
        ctx.save_for_backward(windows, gain)
        ctx.size, ctx.shape, ctx.dtype = size, images.shape, images.dtype
        planar = images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last)
        ctx.layout = torch.contiguous_format if planar else torch.channels_last
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout):
        windows, gain = ctx.saved_tensors
        num_images, channels, height, width = ctx.shape
        size, num_windows = ctx.size, windows.shape[0]
        dout = dout.contiguous(memory_format=torch.channels_last)
        dimages = torch.empty(ctx.shape, dtype=ctx.dtype, device=dout.device, memory_format=ctx.layout)
        share = torch.empty(num_windows, 2, size, dtype=torch.float32, device=dout.device)
        if dimages.numel():
            with device_of(dout):
                share_kernel[(num_windows, 2, cdiv(size, BLOCK))](
                    windows, share, height, width, SIZE=size, BLOCK=BLOCK, num_warps=WARPS, **OPTIONS
                )
                backward_kernel[(num_images * cdiv(height * width, BLOCK), cdiv(channels, CHANNELS))](
                    dout,
                    windows,
                    share,
                    windows if gain is None else gain,
                    dimages,
                    height,
                    width,
                    *dimages.stride(),
                    C=channels,
                    SIZE=size,
                    SHARED=num_windows == 1,
                    HAS_GAIN=gain is not None,
                    CHANNELS=CHANNELS,
                    BLOCK=BLOCK,
                    num_warps=WARPS,
                    **OPTIONS,
                )
        return dimages, None, None, None, None, None
