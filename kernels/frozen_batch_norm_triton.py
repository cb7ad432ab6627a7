"""frozen_batch_norm in Triton: one read of x forward, one pass backward, deterministic two-stage sums."""

import torch
import triton
import triton.language as tl

from .launch import OPTIONS, cdiv, device_of, row_tiles

COMBINE_P, COMBINE_C = 256, 8  # 8 float32 channels are one 32-byte sector


@triton.jit
def forward_kernel(
    x_ptr,
    residual_ptr,
    y_ptr,
    sign_ptr,
    scale_ptr,
    shift_ptr,
    center_ptr,
    partial_ptr,
    num_rows,
    chunk,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    RELU: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    SAVE_SIGN: tl.constexpr,
):
    # x, residual, y: [num_rows, C]; sign: uint8 [num_rows, ceil(C / 8)]; partial: float32 [num_chunks, 2, C]
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
        if RELU:
            y = tl.where(y < 0, 0.0, y)  # NaN stays NaN
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=live)
    partial_ptr += tl.program_id(0).to(tl.int64) * (2 * C) + c
    tl.store(partial_ptr, tl.sum(sum1, axis=0), mask=live_c)
    tl.store(partial_ptr + C, tl.sum(sum2, axis=0), mask=live_c)


@triton.jit
def combine_kernel(
    partial_ptr,
    center_ptr,
    mean_ptr,
    var_ptr,
    num_chunks,
    num_rows,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    # partial: float32 [num_chunks, 2, C]; mean, var: float32 [C]
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    live_c = c < C
    sum1 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    sum2 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for begin in range(0, num_chunks, BLOCK_P):
        p = begin + tl.arange(0, BLOCK_P)
        live = (p < num_chunks)[:, None] & live_c[None, :]
        at = p[:, None] * (2 * C) + c[None, :]
        sum1 += tl.load(partial_ptr + at, mask=live, other=0.0)
        sum2 += tl.load(partial_ptr + at + C, mask=live, other=0.0)
    shifted = tl.sum(sum1, axis=0) / num_rows
    var = tl.sum(sum2, axis=0) / num_rows - shifted * shifted
    tl.store(mean_ptr + c, tl.load(center_ptr + c, mask=live_c, other=0.0) + shifted, mask=live_c)
    tl.store(var_ptr + c, tl.where(var < 0, 0.0, var), mask=live_c)


@triton.jit
def backward_kernel(
    dy_ptr,
    x_ptr,
    sign_ptr,
    dx_ptr,
    dresidual_ptr,
    scale_ptr,
    shift_ptr,
    mean_ptr,
    dmean_ptr,
    dvar_ptr,
    num_rows,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    RELU: tl.constexpr,
    HAS_DY: tl.constexpr,
    HAS_SIGN: tl.constexpr,
):
    # dy, x, dx, dresidual: [num_rows, C]; sign: uint8 [num_rows, ceil(C / 8)]
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    live_c = c < C
    scale = tl.load(scale_ptr + c, mask=live_c, other=0.0)[None, :]
    mean = tl.load(mean_ptr + c, mask=live_c, other=0.0)[None, :]
    offset = (tl.load(dmean_ptr + c, mask=live_c, other=0.0) / num_rows)[None, :]
    slope = (tl.load(dvar_ptr + c, mask=live_c, other=0.0) * 2 / num_rows)[None, :]
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    row = tl.arange(0, BLOCK_R)
    live_r = row < num_rows - first
    live = live_r[:, None] & live_c[None, :]
    at = row[:, None] * C + c[None, :]
    x = tl.load(x_ptr + first * C + at, mask=live, other=0.0).to(tl.float32)
    dx = tl.fma(x - mean, slope, offset)  # not x * slope - mean * slope: that cancels when the mean is large
    if HAS_DY:
        dy = tl.load(dy_ptr + first * C + at, mask=live, other=0.0).to(tl.float32)
        if HAS_SIGN:
            SIGNS: tl.constexpr = (C + 7) // 8
            byte = tl.program_id(1) * (BLOCK_C // 8) + tl.arange(0, BLOCK_C // 8)
            live_byte = live_r[:, None] & (byte < SIGNS)[None, :]
            packed = tl.load(sign_ptr + first * SIGNS + row[:, None] * SIGNS + byte[None, :], mask=live_byte, other=0)
            bits = (packed.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
            dy = tl.where(tl.reshape(bits, (BLOCK_R, BLOCK_C)) != 0, dy, 0.0)
            tl.store(dresidual_ptr + first * C + at, dy.to(dresidual_ptr.dtype.element_ty), mask=live)
        elif RELU:
            shift = tl.load(shift_ptr + c, mask=live_c, other=0.0)[None, :]
            dy = tl.where(tl.fma(x, scale, shift) > 0, dy, 0.0)
        dx = tl.fma(dy, scale, dx)
    tl.store(dx_ptr + first * C + at, dx.to(dx_ptr.dtype.element_ty), mask=live)


class FrozenBatchNorm(torch.autograd.Function):
    """y, mean, var of `frozen_batch_norm`; x is channels_last, of float32, bfloat16 or float16, the vectors float32."""

    @staticmethod
    def forward(ctx, x, residual, scale, shift, center, relu):
        vectors = {"scale": scale, "shift": shift, "center": center}
        for name, vector in vectors.items():
            if vector.dtype != torch.float32 or not vector.is_contiguous():
                raise ValueError(
                    f"frozen_batch_norm needs a contiguous float32 {name}, "
                    f"got {vector.dtype} with strides {vector.stride()}"
                )
        num_rows, channels = x.numel() // x.shape[1], x.shape[1]
        if num_rows == 0:
            raise ValueError(f"frozen_batch_norm needs at least one row for its moments, got shape {tuple(x.shape)}")
        tiles = row_tiles(num_rows, channels)
        has_residual = residual is not None
        save_sign = relu and has_residual and any(ctx.needs_input_grad[:2])
        y = torch.empty_like(x, memory_format=torch.channels_last)
        sign = None
        if save_sign:  # x alone does not tell the sign of y; one bit an element does
            sign = torch.empty(num_rows, cdiv(channels, 8), dtype=torch.uint8, device=x.device)
        partial = torch.empty(tiles.num_chunks, 2, channels, dtype=torch.float32, device=x.device)
        mean, var = torch.empty_like(center), torch.empty_like(center)
        with device_of(x):
            forward_kernel[(tiles.num_chunks, tiles.num_columns)](
                x,
                residual if has_residual else x,
                y,
                sign if save_sign else x,
                scale,
                shift,
                center,
                partial,
                num_rows,
                tiles.chunk,
                C=channels,
                BLOCK_R=tiles.block_r,
                BLOCK_C=tiles.block_c,
                RELU=relu,
                HAS_RESIDUAL=has_residual,
                SAVE_SIGN=save_sign,
                num_warps=8,
                **OPTIONS,
            )
            combine_kernel[(cdiv(channels, COMBINE_C),)](
                partial,
                center,
                mean,
                var,
                tiles.num_chunks,
                num_rows,
                C=channels,
                BLOCK_P=COMBINE_P,
                BLOCK_C=COMBINE_C,
                num_warps=4,
                **OPTIONS,
            )
        ctx.save_for_backward(x, sign, scale, shift, mean)
        ctx.relu, ctx.has_residual = relu, has_residual
        ctx.residual_dtype = residual.dtype if has_residual else None
        ctx.set_materialize_grads(False)
        return y, mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dmean, dvar):
        x, sign, scale, shift, mean = ctx.saved_tensors
        num_rows, channels = x.numel() // x.shape[1], x.shape[1]
        tiles = row_tiles(num_rows, channels)
        dmean = torch.zeros_like(mean) if dmean is None else dmean.contiguous()
        dvar = torch.zeros_like(mean) if dvar is None else dvar.contiguous()
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        has_dy = dy is not None
        has_sign = has_dy and sign is not None
        dresidual = None
        if has_dy:
            dy = dy.contiguous(memory_format=torch.channels_last)
            if ctx.has_residual:
                dresidual = dy
            if has_sign:
                dresidual = torch.empty_like(x, dtype=ctx.residual_dtype, memory_format=torch.channels_last)
        with device_of(x):
            backward_kernel[(tiles.num_tiles, tiles.num_columns)](
                dy if has_dy else x,
                x,
                sign if has_sign else x,
                dx,
                dresidual if has_sign else dx,
                scale,
                shift,
                mean,
                dmean,
                dvar,
                num_rows,
                C=channels,
                BLOCK_R=tiles.block_r,
                BLOCK_C=tiles.block_c,
                RELU=ctx.relu,
                HAS_DY=has_dy,
                HAS_SIGN=has_sign,
                num_warps=8,
                **OPTIONS,
            )
        return dx, dresidual, None, None, None, None
