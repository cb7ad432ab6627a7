"""replay_crop in Triton: every output pixel gathers from its own image's or its partner's window, in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.filter_gpu import BLOCK, CHANNELS, WARPS, load_window, resample, store_pixels, taps
from ..common.launch import OPTIONS, cdiv, device_of


@triton.jit
def replay_kernel(
    images_ptr, ids_ptr, windows_ptr, partners_ptr, partner_windows_ptr, boxes_ptr, share_ptr, gain_ptr, offset_ptr,
    output_ptr, height, width, C: tl.constexpr, SIZE: tl.constexpr, HAS_BOX: tl.constexpr, HAS_SHARE: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # images: uint8 [M, C, height, width]; ids, partners: int64 [B]; windows: int32 [B, 7]; boxes: int32 [B, 4];
    # share: float32 [B]; output: [B, SIZE, SIZE, C]
    tl.static_assert(CHANNELS == 3)
    BLOCKS: tl.constexpr = (SIZE * SIZE + BLOCK - 1) // BLOCK
    n = (tl.program_id(0) // BLOCKS).to(tl.int64)
    pixel = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    live = pixel < SIZE * SIZE
    c = tl.program_id(1).to(tl.int64) * CHANNELS
    live1, live2 = c + 1 < C, c + 2 < C
    plane = height * width
    top, left, rows, columns, flip, roll_y, roll_x = load_window(windows_ptr + n * 7, SIZE)
    taps_y, taps_x = taps(rows, SIZE), taps(columns, SIZE)
    at = (tl.load(ids_ptr + n) * C + c) * plane
    if HAS_BOX or HAS_SHARE:
        other_top, other_left, other_rows, other_columns, other_flip, other_roll_y, other_roll_x = load_window(
            partner_windows_ptr + n * 7, SIZE
        )
        other_at = (tl.load(partners_ptr + n) * C + c) * plane
        other_taps_y, other_taps_x = taps(other_rows, SIZE), taps(other_columns, SIZE)
    if HAS_BOX:
        begin_y, end_y = tl.load(boxes_ptr + n * 4), tl.load(boxes_ptr + n * 4 + 1)
        begin_x, end_x = tl.load(boxes_ptr + n * 4 + 2), tl.load(boxes_ptr + n * 4 + 3)
        y, x = pixel // SIZE, pixel % SIZE
        inside = (y >= begin_y) & (y < end_y) & (x >= begin_x) & (x < end_x)
        top, left = tl.where(inside, other_top, top), tl.where(inside, other_left, left)
        rows, columns = tl.where(inside, other_rows, rows), tl.where(inside, other_columns, columns)
        flip = tl.where(inside, other_flip, flip)
        roll_y, roll_x = tl.where(inside, other_roll_y, roll_y), tl.where(inside, other_roll_x, roll_x)
        taps_y, taps_x = tl.maximum(taps_y, other_taps_y), tl.maximum(taps_x, other_taps_x)
        at = tl.where(inside, other_at, at)
    value0, value1, value2 = resample(
        images_ptr + at, top, left, rows, columns, flip, roll_y, roll_x, taps_y, taps_x, pixel, live, live1, live2,
        height, width, plane, width, 1, C, SIZE,
    )  # fmt: skip
    if HAS_SHARE:
        other0, other1, other2 = resample(
            images_ptr + other_at, other_top, other_left, other_rows, other_columns, other_flip, other_roll_y,
            other_roll_x, other_taps_y, other_taps_x, pixel, live, live1, live2, height, width, plane, width, 1, C,
            SIZE,
        )  # fmt: skip
        share = tl.load(share_ptr + n)
        value0 = share * value0 + (1 - share) * other0
        value1 = share * value1 + (1 - share) * other1
        value2 = share * value2 + (1 - share) * other2
    output_ptr += n * (SIZE * SIZE * C)
    store_pixels(value0, value1, value2, output_ptr, gain_ptr, offset_ptr, pixel, live, c, C, True, True, CHANNELS)


def replay_crop(
    images: Tensor, ids: Tensor, windows: Tensor, size: int, gain: Tensor, offset: Tensor, partners: Tensor | None,
    partner_windows: Tensor | None, boxes: Tensor | None, share: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """`replay_crop` of checked arguments, all on the images' device and contiguous."""
    _, channels, height, width = images.shape
    output = torch.empty(
        (len(ids), channels, size, size), dtype=dtype, device=images.device, memory_format=torch.channels_last
    )
    if output.numel():
        with device_of(images):
            replay_kernel[(len(ids) * cdiv(size * size, BLOCK), cdiv(channels, CHANNELS))](
                images, ids, windows, ids if partners is None else partners,
                windows if partner_windows is None else partner_windows, windows if boxes is None else boxes,
                gain if share is None else share, gain, offset, output, height, width, C=channels, SIZE=size,
                HAS_BOX=boxes is not None, HAS_SHARE=share is not None, CHANNELS=CHANNELS, BLOCK=BLOCK, num_warps=WARPS,
                **OPTIONS,
            )  # fmt: skip
    return output
