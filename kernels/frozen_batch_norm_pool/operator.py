"""Frozen BatchNorm + ReLU + 3x3 max-pool of stride 2 in one pass: the stem of ImageNet networks.

Like frozen_batch_norm it returns its input's batch moments as well, differentiable, so that nothing of the stem's
large feature map but the convolution's output is ever stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.checks import check_map, check_vectors
from .definition import frozen_batch_norm_pool_reference


def frozen_batch_norm_pool(
    x: Tensor, scale: Tensor, shift: Tensor, center: Tensor, *, output_center: Tensor | None = None
) -> tuple[Tensor, ...]:
    """y = max_pool2d(relu(x * scale + shift), 3, stride=2, padding=1), and the mean and biased variance of x.

    x: [N, C, H, W] channels_last. scale = gamma / sqrt(running_var + eps), shift = beta - running_mean * scale, and
    center (a value near the mean of x: the running mean) are float32 [C] (float64 for float64 x). Returns y,
    [N, C, ceil(H / 2), ceil(W / 2)] channels_last like x, and mean and var over N, H and W in scale's dtype, [C]. With
    output_center (a value near the mean of y, [C]) the mean and biased variance of y, as it is stored, follow: all are
    differentiable in x. Sums are taken of deviations from the centers, so that a large mean costs no digits. Of equal
    maxima the first in row order gets the gradient, and a NaN is a maximum, as in torch. Raises ValueError for another
    memory layout, shape or dtype.
    """
    check_map("frozen_batch_norm_pool", x)
    check_vectors("frozen_batch_norm_pool", x, scale=scale, shift=shift, center=center, output_center=output_center)
    if x.is_cuda and x.dtype != torch.float64:
        from . import gpu

        return gpu.FrozenBatchNormPool.apply(x, scale, shift, center, output_center)
    if x.dtype in (torch.float32, torch.bfloat16):
        from . import cpu

        return cpu.FrozenBatchNormPool.apply(x, scale, shift, center, output_center)
    y, *moments = frozen_batch_norm_pool_reference(x, scale, shift)
    y = y.contiguous(memory_format=torch.channels_last)
    return (y, *moments) if output_center is not None else (y, *moments[:2])
