"""The resampling filter of the crops in Triton: integer weights that every device computes alike.

Along one axis a window of `length` source positions p becomes SIZE outputs o. Their centres lie (2 p + 1) SIZE and
(2 o + 1) length, in units of 1 / (2 SIZE) of a source pixel, and the filter is a triangle of half-width
reach = 2 max(length, SIZE). So the weight of p in o is the integer max(reach - |distance|, 0), divided by the sum over
the positions that exist: exact up to that division, for any size.
"""

import triton
import triton.language as tl

BLOCK, WARPS = 256, 8  # one pixel a thread
CHANNELS = 3  # a program's share: a thread holds a pixel's channels, so indices and weights are computed once


@triton.jit
def load_window(window_ptr, SIZE: tl.constexpr):
    """top, left, height, width, flip, and the two circular shifts in [0, SIZE)."""
    top, left = tl.load(window_ptr), tl.load(window_ptr + 1)
    rows, columns = tl.load(window_ptr + 2), tl.load(window_ptr + 3)
    flip = tl.load(window_ptr + 4)
    roll_y = (tl.load(window_ptr + 5) % SIZE + SIZE) % SIZE
    roll_x = (tl.load(window_ptr + 6) % SIZE + SIZE) % SIZE
    return top, left, rows, columns, flip, roll_y, roll_x


@triton.jit
def visible(start, length, extent):
    """The part [low, high) of a window that is inside the image."""
    return tl.maximum(-start, 0), tl.minimum(length, extent - start)


@triton.jit
def taps(length, SIZE: tl.constexpr):
    """Number of source positions that an output may see."""
    return (2 * tl.maximum(length, SIZE) + SIZE - 1) // SIZE


@triton.jit
def overlap(p, o, length, SIZE: tl.constexpr):
    """Unnormalised weight of source position p in output o."""
    return tl.maximum(2 * tl.maximum(length, SIZE) - tl.abs((2 * p + 1) * SIZE - (2 * o + 1) * length), 0)


@triton.jit
def first_within(center, reach, other, spacing):
    """The first index i >= 0 whose centre, i * spacing + other, lies within reach of `center` (both ends excluded)."""
    return (tl.maximum(center - reach - other, -spacing) + spacing) // spacing


@triton.jit
def first_source(o, length, low, SIZE: tl.constexpr):
    """The first source position that output o sees."""
    return tl.maximum(first_within((2 * o + 1) * length, 2 * tl.maximum(length, SIZE), SIZE, 2 * SIZE), low)


@triton.jit
def total_overlap(o, length, low, high, SIZE: tl.constexpr):
    """Sum of overlap over p in [low, high): two arithmetic series, left and right of the triangle's top."""
    reach = 2 * tl.maximum(length, SIZE)
    center = (2 * o + 1) * length
    first = first_source(o, length, low, SIZE)
    last = tl.maximum(tl.minimum((center + reach - SIZE) // (2 * SIZE), high - 1), first - 1)
    top = tl.minimum(tl.maximum((center + SIZE) // (2 * SIZE) - 1, first - 1), last)
    left = (top - first + 1) * (overlap(first, o, length, SIZE) + overlap(top, o, length, SIZE))
    right = (last - top) * (overlap(top + 1, o, length, SIZE) + overlap(last, o, length, SIZE))
    return (left + right) // 2


@triton.jit
def resample(
    image_ptr, top, left, rows, columns, flip, roll_y, roll_x, taps_y, taps_x, pixel, live, live1, live2, height, width,
    stride_c, stride_h, stride_w, C: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Three channels of a view at `pixel`, float32; pointer and window may differ from pixel to pixel.

    pixel: row * SIZE + column; live1, live2: whether the second and the third channel exist; taps: upper bounds.
    """
    low_y, high_y = visible(top, rows, height)
    low_x, high_x = visible(left, columns, width)
    o_y = (pixel // SIZE - roll_y + SIZE) % SIZE
    o_x = (pixel % SIZE - roll_x + SIZE) % SIZE
    o_x = tl.where(flip != 0, SIZE - 1 - o_x, o_x)
    first_y = first_source(o_y, rows, low_y, SIZE)
    first_x = first_source(o_x, columns, low_x, SIZE)
    total_y = tl.maximum(total_overlap(o_y, rows, low_y, high_y, SIZE), 1).to(tl.float32)
    total_x = tl.maximum(total_overlap(o_x, columns, low_x, high_x, SIZE), 1).to(tl.float32)
    value0 = tl.zeros(pixel.shape, tl.float32)
    value1 = tl.zeros(pixel.shape, tl.float32)
    value2 = tl.zeros(pixel.shape, tl.float32)
    for i in range(0, taps_y):
        y = first_y + i
        weight_y = tl.div_rn(overlap(y, o_y, rows, SIZE).to(tl.float32), total_y)
        live_y = live & (y < high_y)
        row_ptr = image_ptr + (top + y).to(tl.int64) * stride_h
        for j in range(0, taps_x):
            x = first_x + j
            weight = weight_y * tl.div_rn(overlap(x, o_x, columns, SIZE).to(tl.float32), total_x)
            here = live_y & (x < high_x) & (weight > 0)
            at = row_ptr + (left + x).to(tl.int64) * stride_w
            value0 += weight * tl.load(at, mask=here, other=0).to(tl.float32)
            if C > 1:
                value1 += weight * tl.load(at + stride_c, mask=here & live1, other=0).to(tl.float32)
            if C > 2:
                value2 += weight * tl.load(at + 2 * stride_c, mask=here & live2, other=0).to(tl.float32)
    return value0, value1, value2


@triton.jit
def store_pixels(
    value0, value1, value2, output_ptr, gain_ptr, offset_ptr, pixel, live, c, C: tl.constexpr, HAS_GAIN: tl.constexpr,
    HAS_OFFSET: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Writes value * gain + offset of the channels from c on; output_ptr: the view [SIZE, SIZE, C]."""
    out = output_ptr + pixel * C + c
    for k in tl.static_range(CHANNELS):
        value = value0 if k == 0 else (value1 if k == 1 else value2)
        if HAS_GAIN:
            value *= tl.load(gain_ptr + c + k, mask=c + k < C, other=0.0)
        if HAS_OFFSET:
            value += tl.load(offset_ptr + c + k, mask=c + k < C, other=0.0)
        tl.store(out + k, value.to(output_ptr.dtype.element_ty), mask=live & (c + k < C))
