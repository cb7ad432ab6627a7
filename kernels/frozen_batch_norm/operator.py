"""Frozen BatchNorm (+ residual) (+ activation) that also returns the batch moments of its input and of its output.

The matching losses of the field compare the batch mean and variance of every BatchNorm's or convolution's input with
targets; this operator has them for free while it normalises, and its backward takes the gradients of output and moments
in one pass over the tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.checks import check_map, check_vectors
from .definition import ACTIVATIONS, Activation, frozen_batch_norm_reference


def frozen_batch_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    center: Tensor | None,
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
    mean costs no digits. Without a center y is alone, which costs a CPU less. Raises ValueError for another memory
    layout, shape, dtype of a vector, or activation.
    """
    check_map("frozen_batch_norm", x)
    if activation not in ACTIVATIONS:
        raise ValueError(f"frozen_batch_norm needs an activation among {', '.join(ACTIVATIONS)}, got {activation!r}")
    if center is None and output_center is not None:
        raise ValueError("frozen_batch_norm needs a center too where there is an output_center")
    check_vectors("frozen_batch_norm", x, scale=scale, shift=shift, center=center, output_center=output_center)
    if residual is not None:
        if residual.shape != x.shape or residual.dtype != x.dtype:
            raise ValueError(
                f"frozen_batch_norm needs a residual of {x.dtype} and shape {tuple(x.shape)}, "
                f"got {residual.dtype} and {tuple(residual.shape)}"
            )
        residual = residual.contiguous(memory_format=torch.channels_last)
    count = 1 if center is None else 3 if output_center is None else 5
    if x.is_cuda and x.dtype != torch.float64:
        from . import gpu

        some = shift if center is None else center
        return gpu.FrozenBatchNorm.apply(x, residual, scale, shift, some, output_center, activation)[:count]
    if x.dtype in (torch.float32, torch.bfloat16):
        from . import cpu

        return cpu.FrozenBatchNorm.apply(x, residual, scale, shift, center, output_center, activation)
    return frozen_batch_norm_reference(x, scale, shift, residual=residual, activation=activation)[:count]
