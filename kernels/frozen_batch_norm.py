"""Frozen BatchNorm (+ residual) (+ activation) that also returns the batch moments of its input and of its output.

The matching losses of the field compare the batch mean and variance of every BatchNorm's or convolution's input with
targets; this operator has them for free while it normalises, and its backward takes the gradients of output and moments
in one pass over the tensors.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Literal["none", "relu", "relu6", "silu", "hardswish"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


def frozen_batch_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    center: Tensor,
    *,
    residual: Tensor | None = None,
    activation: Activation = "none",
    output_center: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """y = activation(x * scale + shift (+ residual)), mean and biased variance of x over N, H, W, and those of y.

    x, residual: [N, C, H, W] channels_last, of one dtype. scale = gamma / sqrt(running_var + eps),
    shift = beta - running_mean * scale, and center (a value near the mean of x: the running mean) are float32 [C]
    (float64 for float64 x). Returns y like x, then mean and var, [C], in scale's dtype; with an output_center (float32
    [C], a value near the mean of y) also mean and var of y as it is stored. All of them are differentiable; at an
    activation's kinks the derivative is torch's. Sums are taken of x - center and of y - output_center, so that a large
    mean costs no digits. Raises ValueError for another memory layout, shape, dtype of a vector, or activation.
    """
    if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(
            f"frozen_batch_norm needs a 4-d channels_last input, got strides {x.stride()} for shape {tuple(x.shape)}"
        )
    if x.numel() == 0:
        raise ValueError(f"frozen_batch_norm needs at least one row for its moments, got shape {tuple(x.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"frozen_batch_norm needs an activation among {', '.join(ACTIVATIONS)}, got {activation!r}")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    for name, vector in (("scale", scale), ("shift", shift), ("center", center), ("output_center", output_center)):
        if vector is not None and (vector.shape != x.shape[1:2] or vector.dtype != dtype or not vector.is_contiguous()):
            raise ValueError(
                f"frozen_batch_norm needs a contiguous {dtype} {name} of shape {tuple(x.shape[1:2])}, "
                f"got {vector.dtype} of shape {tuple(vector.shape)} with strides {vector.stride()}"
            )
    if residual is not None:
        if residual.shape != x.shape or residual.dtype != x.dtype:
            raise ValueError(
                f"frozen_batch_norm needs a residual of {x.dtype} and shape {tuple(x.shape)}, "
                f"got {residual.dtype} and {tuple(residual.shape)}"
            )
        residual = residual.contiguous(memory_format=torch.channels_last)
    arguments = (x, residual, scale, shift, center, output_center, activation)
    if x.is_cuda and x.dtype != torch.float64:
        from .frozen_batch_norm_triton import FrozenBatchNorm as Triton

        return Triton.apply(*arguments)
    if x.dtype == torch.float32:
        from .frozen_batch_norm_numba import FrozenBatchNorm as Numba

        return Numba.apply(*arguments)
    return _FrozenBatchNorm.apply(*arguments)


def frozen_batch_norm_reference(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    residual: Tensor | None = None,
    activation: Activation = "none",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same by autograd from its definition, for tests: any layout, best in float64; always with y's moments."""
    y = x * scale[:, None, None] + shift[:, None, None]
    if residual is not None:
        y = y + residual
    if activation != "none":
        y = getattr(F, activation)(y)
    moments = [(t.mean((0, 2, 3)), t.var((0, 2, 3), correction=0)) for t in (x, y)]
    return (y, *moments[0], *moments[1])


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, C, H, W] channels_last -> [N * H * W, C] of `dtype`, a view if it is x's."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).to(dtype)


def _moments(rows: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    deviation = rows - center
    shifted = deviation.mean(0)
    return center + shifted, (deviation - shifted).square_().mean(0)


def _moments_gradient(rows: Tensor, mean: Tensor, dmean: Tensor | None, dvar: Tensor | None) -> Tensor | float:
    """d mean / dx = 1 / R and d var / dx = 2 (x - mean) / R."""
    gradient: Tensor | float = 0.0 if dvar is None else (rows - mean) * (dvar * (2 / len(rows)))
    return gradient if dmean is None else gradient + dmean / len(rows)


def _derivative(z: Tensor, activation: Activation) -> Tensor:
    if activation == "relu":
        return (z > 0).to(z.dtype)
    if activation == "relu6":
        return ((z > 0) & (z < 6)).to(z.dtype)
    if activation == "silu":
        sigmoid = torch.sigmoid(z)
        return sigmoid * (1 + z * (1 - sigmoid))
    return torch.where(z <= -3, 0.0, torch.where(z < 3, z / 3 + 0.5, 1.0))


class _FrozenBatchNorm(torch.autograd.Function):
    """The closed form in PyTorch: float64, and on the CPU bfloat16 and float16. Computes in the vectors' dtype."""

    @staticmethod
    def forward(ctx, x, residual, scale, shift, center, output_center, activation):
        rows = _rows(x, scale.dtype)
        z = torch.addcmul(shift, rows, scale)
        if residual is not None:
            z += _rows(residual, scale.dtype)
        y = torch.empty_like(x)
        _rows(y, x.dtype).copy_(z if activation == "none" else getattr(F, activation)(z))
        mean, var = _moments(rows, center)
        y_moments = () if output_center is None else _moments(_rows(y, scale.dtype), output_center)
        ctx.save_for_backward(x, residual, y, scale, shift, mean, *y_moments[:1])
        ctx.activation = activation
        ctx.set_materialize_grads(False)
        return y, mean, var, *y_moments

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dmean, dvar, dy_mean=None, dy_var=None):
        x, residual, y, scale, shift, mean, *y_mean = ctx.saved_tensors
        rows = _rows(x, scale.dtype)
        gradient = torch.zeros_like(rows) if dy is None else _rows(dy, scale.dtype)
        if y_mean:
            gradient = gradient + _moments_gradient(_rows(y, scale.dtype), y_mean[0], dy_mean, dy_var)
        if ctx.activation != "none":
            z = torch.addcmul(shift, rows, scale)
            if residual is not None:
                z += _rows(residual, scale.dtype)
            gradient = gradient * _derivative(z, ctx.activation)
        dx = dresidual = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            _rows(dx, x.dtype).copy_(gradient * scale + _moments_gradient(rows, mean, dmean, dvar))
        if ctx.needs_input_grad[1]:
            dresidual = torch.empty_like(x)
            _rows(dresidual, x.dtype).copy_(gradient)
        return dx, dresidual, None, None, None, None, None
