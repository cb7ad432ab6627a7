"""frozen_batch_norm in Triton: one read of x forward, one pass backward, deterministic two-stage sums."""

import torch
import triton
import triton.language as tl

from ..common.channel_moments_gpu import combine
from ..common.launch import OPTIONS, TILE, RowTiles, cdiv, device_of, moments_gradients, row_tiles

REGISTERS = 128  # a thread of the forward: two programs of 8 warps fit


@triton.jit
def _activate(z, ACTIVATION: tl.constexpr):
    # comparisons, not minimum and maximum: NaN stays NaN
    if ACTIVATION == "relu":
        z = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "relu6":
        z = tl.where(z < 0, 0.0, tl.where(z > 6, 6.0, z))
    elif ACTIVATION == "silu":
        z = z / (1 + tl.exp(-z))
    elif ACTIVATION == "hardswish":
        z *= tl.where(z < -3, 0.0, tl.where(z > 3, 6.0, z + 3)) / 6
    return z


@triton.jit
def _gradient(dy, z, ACTIVATION: tl.constexpr):
    """dy times the activation's derivative at z; at its kinks torch's."""
    if ACTIVATION == "relu":
        dy = tl.where(z > 0, dy, 0.0)
    elif ACTIVATION == "relu6":
        dy = tl.where((z > 0) & (z < 6), dy, 0.0)
    elif ACTIVATION == "silu":
        sigmoid = 1 / (1 + tl.exp(-z))
        dy *= sigmoid * (1 + z * (1 - sigmoid))
    elif ACTIVATION == "hardswish":
        dy *= tl.where(z <= -3, 0.0, tl.where(z < 3, z / 3 + 0.5, 1.0))
    return dy


@triton.jit
def forward_kernel(
    x_ptr, residual_ptr, y_ptr, sign_ptr, scale_ptr, shift_ptr, center_ptr, output_center_ptr, partial_ptr, num_rows,
    chunk, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, ACTIVATION: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_OUTPUT: tl.constexpr, SAVE_SIGN: tl.constexpr,
):  # fmt: skip
    # x, residual, y: [num_rows, C]; sign: uint8 [num_rows, ceil(C / 8)]; partial: float32 [num_chunks, SUMS, C]
    SUMS: tl.constexpr = 4 if HAS_OUTPUT else 2
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    live_c = c < C
    scale = tl.load(scale_ptr + c, mask=live_c, other=0.0)[None, :]
    shift = tl.load(shift_ptr + c, mask=live_c, other=0.0)[None, :]
    center = tl.load(center_ptr + c, mask=live_c, other=0.0)[None, :]
    first = tl.program_id(0).to(tl.int64) * chunk
    end = tl.minimum(num_rows - first, chunk).to(tl.int32)
    x_ptr += first * C
    residual_ptr += first * C
    y_ptr += first * C
    SIGNS: tl.constexpr = (C + 7) // 8
    sign_ptr += first * SIGNS
    sum1 = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    sum2 = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    if HAS_OUTPUT:
        output_center = tl.load(output_center_ptr + c, mask=live_c, other=0.0)[None, :]
        sum3 = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        sum4 = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for begin in range(0, chunk, BLOCK_R):
        row = begin + tl.arange(0, BLOCK_R)
        live = (row < end)[:, None] & live_c[None, :]
        at = row[:, None] * C + c[None, :]
        x = tl.load(x_ptr + at, mask=live, other=0.0).to(tl.float32)
        deviation = tl.where(live, x - center, 0.0)
        sum1 += deviation
        sum2 += deviation * deviation
        y = tl.fma(x, scale, shift)
        if HAS_RESIDUAL:
            y += tl.load(residual_ptr + at, mask=live, other=0.0).to(tl.float32)
        if SAVE_SIGN:
            bits = tl.reshape((y > 0).to(tl.int32), (BLOCK_R, BLOCK_C // 8, 8)) << tl.arange(0, 8)[None, None, :]
            byte = tl.program_id(1) * (BLOCK_C // 8) + tl.arange(0, BLOCK_C // 8)
            live_byte = (row < end)[:, None] & (byte < SIGNS)[None, :]
            tl.store(sign_ptr + row[:, None] * SIGNS + byte[None, :], tl.sum(bits, axis=2).to(tl.uint8), mask=live_byte)
        y = _activate(y, ACTIVATION).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + at, y, mask=live)
        if HAS_OUTPUT:
            deviation = tl.where(live, y.to(tl.float32) - output_center, 0.0)
            sum3 += deviation
            sum4 += deviation * deviation
    partial_ptr += tl.program_id(0).to(tl.int64) * (SUMS * C) + c
    tl.store(partial_ptr, tl.sum(sum1, axis=0), mask=live_c)
    tl.store(partial_ptr + C, tl.sum(sum2, axis=0), mask=live_c)
    if HAS_OUTPUT:
        tl.store(partial_ptr + 2 * C, tl.sum(sum3, axis=0), mask=live_c)
        tl.store(partial_ptr + 3 * C, tl.sum(sum4, axis=0), mask=live_c)


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, kept_ptr, dx_ptr, dresidual_ptr, scale_ptr, shift_ptr, mean_ptr, dmean_ptr, dvar_ptr, y_mean_ptr,
    dy_mean_ptr, dy_var_ptr, num_rows, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
    ACTIVATION: tl.constexpr, KEPT: tl.constexpr, HAS_DY: tl.constexpr, HAS_INPUT: tl.constexpr,
    HAS_OUTPUT: tl.constexpr, HAS_DRESIDUAL: tl.constexpr,
):  # fmt: skip
    # dy, x, dx, dresidual: [num_rows, C]; kept: "sign" uint8 [num_rows, ceil(C / 8)], "y" or "residual" like x
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    live_c = c < C
    scale = tl.load(scale_ptr + c, mask=live_c, other=0.0)[None, :]
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    row = tl.arange(0, BLOCK_R)
    live_r = row < num_rows - first
    live = live_r[:, None] & live_c[None, :]
    at = row[:, None] * C + c[None, :]
    x = tl.load(x_ptr + first * C + at, mask=live, other=0.0).to(tl.float32)
    dx = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    if HAS_INPUT:
        mean = tl.load(mean_ptr + c, mask=live_c, other=0.0)[None, :]
        offset = (tl.load(dmean_ptr + c, mask=live_c, other=0.0) / num_rows)[None, :]
        slope = (tl.load(dvar_ptr + c, mask=live_c, other=0.0) * 2 / num_rows)[None, :]
        dx = tl.fma(x - mean, slope, offset)  # not x * slope - mean * slope: that cancels when the mean is large
    if HAS_DY or HAS_OUTPUT:
        dy = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        if HAS_DY:
            dy += tl.load(dy_ptr + first * C + at, mask=live, other=0.0).to(tl.float32)
        if KEPT == "y":
            z = tl.load(kept_ptr + first * C + at, mask=live, other=0.0).to(tl.float32)
        else:
            z = tl.fma(x, scale, tl.load(shift_ptr + c, mask=live_c, other=0.0)[None, :])
            if KEPT == "residual":
                z += tl.load(kept_ptr + first * C + at, mask=live, other=0.0).to(tl.float32)
        if HAS_OUTPUT:
            y_mean = tl.load(y_mean_ptr + c, mask=live_c, other=0.0)[None, :]
            y_offset = (tl.load(dy_mean_ptr + c, mask=live_c, other=0.0) / num_rows)[None, :]
            y_slope = (tl.load(dy_var_ptr + c, mask=live_c, other=0.0) * 2 / num_rows)[None, :]
            y = _activate(z, ACTIVATION).to(dx_ptr.dtype.element_ty).to(tl.float32)  # as it was stored
            dy += tl.fma(y - y_mean, y_slope, y_offset)
        if KEPT == "sign":
            SIGNS: tl.constexpr = (C + 7) // 8
            byte = tl.program_id(1) * (BLOCK_C // 8) + tl.arange(0, BLOCK_C // 8)
            live_byte = live_r[:, None] & (byte < SIGNS)[None, :]
            packed = tl.load(kept_ptr + first * SIGNS + row[:, None] * SIGNS + byte[None, :], mask=live_byte, other=0)
            bits = (packed.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
            dy = tl.where(tl.reshape(bits, (BLOCK_R, BLOCK_C)) != 0, dy, 0.0)
        else:
            dy = _gradient(dy, z, ACTIVATION)
        if HAS_DRESIDUAL:
            tl.store(dresidual_ptr + first * C + at, dy.to(dresidual_ptr.dtype.element_ty), mask=live)
        dx = tl.fma(dy, scale, dx)
    tl.store(dx_ptr + first * C + at, dx.to(dx_ptr.dtype.element_ty), mask=live)


def kept(activation: str, has_residual: bool, has_output: bool) -> str:
    """The name of what backward reads beside dy and x, which without a residual tell everything.

    The sign of y is one bit an element. y itself is somebody's input and alive anyway.
    """
    if not has_residual or (activation == "none" and not has_output):
        return "nothing"
    if activation in ("none", "relu"):
        return "y" if has_output else "sign"
    return "residual"


def is_light(element_size: int, has_residual: bool, activation: str) -> bool:
    """Whether an element takes so few bytes and registers that a forward program has room for twice as many."""
    return element_size == 2 and not has_residual and activation in ("none", "relu", "relu6")


def forward_tiles(num_rows: int, channels: int, has_output: bool, is_light: bool) -> RowTiles:
    """Tiles of the forward: half the elements where four sums each take registers, twice as many where each is light,
    so that as many bytes are under way."""
    return row_tiles(num_rows, channels, TILE // (2 if has_output else 1) * (2 if is_light else 1))


class FrozenBatchNorm(torch.autograd.Function):
    """`frozen_batch_norm` of checked arguments; x is of float32, bfloat16 or float16."""

    @staticmethod
    def forward(ctx, x, residual, scale, shift, center, output_center, activation):
        num_rows, channels = x.numel() // x.shape[1], x.shape[1]
        has_residual, has_output = residual is not None, output_center is not None
        light = is_light(x.element_size(), has_residual, activation)
        tiles = forward_tiles(num_rows, channels, has_output, light)
        keeps = kept(activation, has_residual, has_output) if any(ctx.needs_input_grad[:2]) else "nothing"
        y = torch.empty_like(x, memory_format=torch.channels_last)
        sign = None
        if keeps == "sign":
            sign = torch.empty(num_rows, cdiv(channels, 8), dtype=torch.uint8, device=x.device)
        num_sums = 4 if has_output else 2
        partial = torch.empty(tiles.num_chunks, num_sums, channels, dtype=torch.float32, device=x.device)
        if output_center is None:
            output_center = center
        with device_of(x):
            forward_kernel[(tiles.num_chunks, tiles.num_columns)](
                x, residual if has_residual else x, y, x if sign is None else sign, scale, shift, center, output_center,
                partial, num_rows, tiles.chunk, C=channels, BLOCK_R=tiles.block_r, BLOCK_C=tiles.block_c,
                ACTIVATION=activation, HAS_RESIDUAL=has_residual, HAS_OUTPUT=has_output, SAVE_SIGN=sign is not None,
                num_warps=8, maxnreg=REGISTERS, **OPTIONS,
            )  # fmt: skip
            halves = [partial[:, :2], partial[:, 2:]] if has_output else [partial]
            moments = combine(halves, [center, output_center][: len(halves)], [num_rows] * len(halves), num_sums)
        saved = {"nothing": None, "sign": sign, "y": y, "residual": residual}[keeps]
        ctx.save_for_backward(x, saved, scale, shift, moments[0], moments[-2])
        ctx.activation, ctx.kept = activation, keeps
        ctx.set_materialize_grads(False)
        return y, *moments

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dmean, dvar, dy_mean=None, dy_var=None):
        x, kept, scale, shift, mean, y_mean = ctx.saved_tensors
        num_rows, channels = x.numel() // x.shape[1], x.shape[1]
        tiles = row_tiles(num_rows, channels)
        has_dy = dy is not None
        has_input, dmean, dvar = moments_gradients(dmean, dvar, mean)
        has_output, dy_mean, dy_var = moments_gradients(dy_mean, dy_var, y_mean)
        if has_dy:
            dy = dy.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        dresidual = dy if ctx.needs_input_grad[1] else None
        # without activation and gradients of y's moments it is dy itself
        has_dresidual = ctx.needs_input_grad[1] and (has_output or (has_dy and ctx.activation != "none"))
        if has_dresidual:
            dresidual = torch.empty_like(x, memory_format=torch.channels_last)
        with device_of(x):
            backward_kernel[(tiles.num_tiles, tiles.num_columns)](
                dy if has_dy else x, x, x if kept is None else kept, dx, dresidual if has_dresidual else dx, scale,
                shift, mean, dmean, dvar, y_mean, dy_mean, dy_var, num_rows, C=channels, BLOCK_R=tiles.block_r,
                BLOCK_C=tiles.block_c, ACTIVATION=ctx.activation, KEPT=ctx.kept, HAS_DY=has_dy, HAS_INPUT=has_input,
                HAS_OUTPUT=has_output,
                HAS_DRESIDUAL=has_dresidual, num_warps=8, **OPTIONS,
            )  # fmt: skip
        return dx, dresidual, None, None, None, None, None
