"""The second stage of the channels' moments: partial sums into mean and biased variance, in index order."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import OPTIONS, cdiv

BLOCK_P, BLOCK_C, WARPS = 256, 8, 4  # 8 float32 channels are one 32-byte sector


@triton.jit
def _combine(
    partial_ptr, center_ptr, mean_ptr, var_ptr, num_chunks, num_rows, C: tl.constexpr, SUMS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    live_c = c < C
    sum1 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    sum2 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for begin in range(0, num_chunks, BLOCK_P):
        p = begin + tl.arange(0, BLOCK_P)
        live = (p < num_chunks)[:, None] & live_c[None, :]
        at = p[:, None] * (SUMS * C) + c[None, :]
        sum1 += tl.load(partial_ptr + at, mask=live, other=0.0)
        sum2 += tl.load(partial_ptr + at + C, mask=live, other=0.0)
    shifted = tl.sum(sum1, axis=0) / num_rows
    var = tl.sum(sum2, axis=0) / num_rows - shifted * shifted
    tl.store(mean_ptr + c, tl.load(center_ptr + c, mask=live_c, other=0.0) + shifted, mask=live_c)
    tl.store(var_ptr + c, tl.where(var < 0, 0.0, var), mask=live_c)


@triton.jit
def combine_kernel(
    partial_ptr, center_ptr, mean_ptr, var_ptr, num_rows, y_partial_ptr, y_center_ptr, y_mean_ptr, y_var_ptr,
    y_num_rows, num_chunks, C: tl.constexpr, SUMS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # partial, y_partial: float32 [num_chunks, SUMS, C]; the vectors: float32 [C]; programs (., 0) take x's, (., 1) y's
    if tl.program_id(1) == 0:
        _combine(partial_ptr, center_ptr, mean_ptr, var_ptr, num_chunks, num_rows, C, SUMS, BLOCK_P, BLOCK_C)
    else:
        _combine(y_partial_ptr, y_center_ptr, y_mean_ptr, y_var_ptr, num_chunks, y_num_rows, C, SUMS, BLOCK_P, BLOCK_C)


def combine(
    partials: Sequence[Tensor], centers: Sequence[Tensor], rows: Sequence[int], sums: int
) -> tuple[Tensor, ...]:
    """Mean and biased variance, float32 [C] each, of one tensor or of two, in a row; one launch.

    partials: for each, the float32 sums of deviations from its center [C] and of their squares over chunks of its
    `rows` rows: [num_chunks, 2, C], in memory `sums` * C floats apart.
    """
    num_chunks, _, channels = partials[0].shape
    moments = tuple(torch.empty_like(center) for center in centers for _ in range(2))
    combine_kernel[(cdiv(channels, BLOCK_C), len(partials))](
        partials[0], centers[0], *moments[:2], rows[0], partials[-1], centers[-1], *moments[-2:], rows[-1], num_chunks,
        C=channels, SUMS=sums, BLOCK_P=BLOCK_P, BLOCK_C=BLOCK_C, num_warps=WARPS, **OPTIONS,
    )  # fmt: skip
    return moments
