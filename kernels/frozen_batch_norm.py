"""Frozen BatchNorm (+ residual) (+ ReLU) that also returns its input's batch moments, differentiable in all three.

The matching losses of the field compare the batch mean and variance of every BatchNorm's input with targets; this
operator has them for free while it normalises, and its backward takes the gradients of output and moments in one pass.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frozen_batch_norm(
    x: Tensor, scale: Tensor, shift: Tensor, center: Tensor, *, residual: Tensor | None = None, relu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """y = relu?(x * scale + shift (+ residual)), and the mean and biased variance of x over N, H and W.

    x, residual: [N, C, H, W] channels_last, of one dtype. scale = gamma / sqrt(running_var + eps),
    shift = beta - running_mean * scale, and center (a value near the mean of x: the running mean) are float32 [C]
    (float64 for float64 x). Returns y like x; mean and var in scale's dtype, [C]. Sums are taken of x - center,
    so that a large mean costs no digits. Raises ValueError for another memory layout or shape.
    """
    if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(
            f"frozen_batch_norm needs a 4-d channels_last input, got strides {x.stride()} for shape {tuple(x.shape)}"
        )
    for name, vector in (("scale", scale), ("shift", shift), ("center", center)):
        if vector.shape != x.shape[1:2]:
            raise ValueError(f"frozen_batch_norm needs {name} of shape {x.shape[1:2]}, got {tuple(vector.shape)}")
    if residual is not None:
        if residual.shape != x.shape:
            raise ValueError(
                f"frozen_batch_norm needs a residual of shape {tuple(x.shape)}, got {tuple(residual.shape)}"
            )
        residual = residual.contiguous(memory_format=torch.channels_last)
    if x.is_cuda and x.dtype != torch.float64:
        from .frozen_batch_norm_triton import FrozenBatchNorm

        return FrozenBatchNorm.apply(x, residual, scale, shift, center, relu)
    return _FrozenBatchNorm.apply(x, residual, scale, shift, center, relu)


def frozen_batch_norm_reference(
    x: Tensor, scale: Tensor, shift: Tensor, *, residual: Tensor | None = None, relu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by autograd from its definition, for tests: any layout, best in float64."""
    y = x * scale[:, None, None] + shift[:, None, None]
    if residual is not None:
        y = y + residual
    return torch.relu(y) if relu else y, x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)


def _rows(x: Tensor) -> Tensor:
    """[N, C, H, W] channels_last -> a view [N * H * W, C]."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


class _FrozenBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, scale, shift, center, relu):
        rows = _rows(x)
        y = torch.empty_like(x)
        out = _rows(y)
        torch.addcmul(shift.to(x.dtype), rows, scale.to(x.dtype), out=out)
        if residual is not None:
            out += _rows(residual)
        if relu:
            out.relu_()
        deviation = rows.to(scale.dtype) - center
        shifted = deviation.mean(0)
        deviation -= shifted
        mean = center + shifted
        var = deviation.square_().mean(0)
        ctx.save_for_backward(x, y if relu else None, scale, mean)
        ctx.has_residual = residual is not None
        ctx.set_materialize_grads(False)
        return y, mean, var

    @staticmethod
    def backward(ctx, dy, dmean, dvar):
        x, y, scale, mean = ctx.saved_tensors
        rows = _rows(x)
        num_rows = rows.shape[0]
        dresidual = None
        dx = torch.zeros_like(x) if dy is None else torch.empty_like(x)
        out = _rows(dx)
        if dy is not None:
            dy = dy.contiguous(memory_format=torch.channels_last)
            if y is not None:
                dy = dy * (y > 0)
            dresidual = dy if ctx.has_residual else None
            torch.mul(_rows(dy), scale.to(x.dtype), out=out)
        # d mean / dx = 1 / R and d var / dx = 2 (x - mean) / R
        if dvar is not None:
            deviation = rows - mean.to(x.dtype)
            out.addcmul_(deviation, (dvar * (2 / num_rows)).to(x.dtype))
        if dmean is not None:
            out += (dmean / num_rows).to(x.dtype)
        return dx, dresidual, None, None, None, None
