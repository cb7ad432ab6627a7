"""crop in Triton: forward and exact adjoint are both gathers, without atomics."""

import torch
import triton
import triton.language as tl

from ..common.filter_gpu import (
    BLOCK,
    CHANNELS,
    WARPS,
    first_within,
    load_window,
    overlap,
    resample,
    store_pixels,
    taps,
    total_overlap,
    visible,
)  # fmt: skip
from ..common.launch import OPTIONS, cdiv, device_of


@triton.jit
def forward_kernel(
    images_ptr, windows_ptr, gain_ptr, offset_ptr, output_ptr, height, width, stride_n, stride_c, stride_h, stride_w,
    C: tl.constexpr, SIZE: tl.constexpr, SHARED: tl.constexpr, HAS_GAIN: tl.constexpr, HAS_OFFSET: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # images: [N, C, height, width], any strides; windows: int32 [N or 1, 7]; output: [N, SIZE, SIZE, C]
    tl.static_assert(CHANNELS == 3)
    BLOCKS: tl.constexpr = (SIZE * SIZE + BLOCK - 1) // BLOCK
    n = (tl.program_id(0) // BLOCKS).to(tl.int64)
    pixel = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    live = pixel < SIZE * SIZE
    window_ptr = windows_ptr if SHARED else windows_ptr + n * 7
    top, left, rows, columns, flip, roll_y, roll_x = load_window(window_ptr, SIZE)
    c = tl.program_id(1).to(tl.int64) * CHANNELS
    value0, value1, value2 = resample(
        images_ptr + n * stride_n + c * stride_c, top, left, rows, columns, flip, roll_y, roll_x, taps(rows, SIZE),
        taps(columns, SIZE), pixel, live, c + 1 < C, c + 2 < C, height, width, stride_c, stride_h, stride_w, C, SIZE,
    )  # fmt: skip
    output_ptr += n * (SIZE * SIZE * C)
    store_pixels(
        value0, value1, value2, output_ptr, gain_ptr, offset_ptr, pixel, live, c, C, HAS_GAIN, HAS_OFFSET, CHANNELS
    )


@triton.jit
def share_kernel(windows_ptr, share_ptr, height, width, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    # share: float32 [N or 1, 2, SIZE], one over the total weight of an output row or column, 0 where there is none
    n = tl.program_id(0).to(tl.int64)
    axis = tl.program_id(1)
    o = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    length = tl.load(windows_ptr + n * 7 + 2 + axis)
    low, high = visible(tl.load(windows_ptr + n * 7 + axis), length, tl.where(axis == 0, height, width))
    total = total_overlap(o, length, low, high, SIZE)
    share = tl.div_rn(1.0, tl.maximum(total, 1).to(tl.float32))
    tl.store(share_ptr + (n * 2 + axis) * SIZE + o, tl.where(total > 0, share, 0.0), mask=o < SIZE)


@triton.jit
def backward_kernel(
    dout_ptr, windows_ptr, share_ptr, gain_ptr, dimages_ptr, height, width, stride_n, stride_c, stride_h, stride_w,
    C: tl.constexpr, SIZE: tl.constexpr, SHARED: tl.constexpr, HAS_GAIN: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # dout: [N, SIZE, SIZE, C]; dimages: [N, C, height, width], any strides
    tl.static_assert(CHANNELS == 3)
    num_blocks = (height * width + BLOCK - 1) // BLOCK
    n = (tl.program_id(0) // num_blocks).to(tl.int64)
    pixel = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    live = pixel < height * width
    window_ptr = windows_ptr if SHARED else windows_ptr + n * 7
    share_ptr = share_ptr if SHARED else share_ptr + n * (2 * SIZE)
    top, left, rows, columns, flip, roll_y, roll_x = load_window(window_ptr, SIZE)
    low_y, high_y = visible(top, rows, height)
    low_x, high_x = visible(left, columns, width)
    y = pixel // width - top
    x = pixel % width - left
    inside = live & (y >= low_y) & (y < high_y) & (x >= low_x) & (x < high_x)
    reach_y = 2 * tl.maximum(rows, SIZE)
    reach_x = 2 * tl.maximum(columns, SIZE)
    first_y = first_within((2 * y + 1) * SIZE, reach_y, rows, 2 * rows)
    first_x = first_within((2 * x + 1) * SIZE, reach_x, columns, 2 * columns)
    c = tl.program_id(1).to(tl.int64) * CHANNELS
    dout_ptr += n * (SIZE * SIZE * C) + c
    value0 = tl.zeros((BLOCK,), tl.float32)
    value1 = tl.zeros((BLOCK,), tl.float32)
    value2 = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, (reach_y + rows - 1) // rows):
        o_y = first_y + i
        live_y = inside & (o_y < SIZE)
        weight_y = overlap(y, o_y, rows, SIZE).to(tl.float32) * tl.load(share_ptr + o_y, mask=live_y, other=0.0)
        row = (o_y + roll_y) % SIZE * SIZE
        for j in range(0, (reach_x + columns - 1) // columns):
            o_x = first_x + j
            live_x = live_y & (o_x < SIZE)
            weight_x = overlap(x, o_x, columns, SIZE).to(tl.float32)
            weight = weight_y * (weight_x * tl.load(share_ptr + SIZE + o_x, mask=live_x, other=0.0))
            here = live_x & (weight > 0)
            at = dout_ptr + (row + (tl.where(flip != 0, SIZE - 1 - o_x, o_x) + roll_x) % SIZE) * C
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
                    images, windows, windows if gain is None else gain, windows if offset is None else offset, output,
                    height, width, *images.stride(), C=channels, SIZE=size, SHARED=shared, HAS_GAIN=gain is not None,
                    HAS_OFFSET=offset is not None, CHANNELS=CHANNELS, BLOCK=BLOCK, num_warps=WARPS, **OPTIONS,
                )  # fmt: skip
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
                    dout, windows, share, windows if gain is None else gain, dimages, height, width, *dimages.stride(),
                    C=channels, SIZE=size, SHARED=num_windows == 1, HAS_GAIN=gain is not None, CHANNELS=CHANNELS,
                    BLOCK=BLOCK, num_warps=WARPS, **OPTIONS,
                )  # fmt: skip
        return dimages, None, None, None, None, None
