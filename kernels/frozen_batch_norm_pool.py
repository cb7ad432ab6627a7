"""Frozen BatchNorm + ReLU + 3x3 max-pool of stride 2 in one pass: the stem of ImageNet networks.

Like frozen_batch_norm it returns its input's batch moments as well, differentiable, so that nothing of the stem's
large feature map but the convolution's output is ever stored.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def frozen_batch_norm_pool(
    x: Tensor, scale: Tensor, shift: Tensor, center: Tensor, *, output_center: Tensor | None = None
) -> tuple[Tensor, ...]:
    """y = max_pool2d(relu(x * scale + shift), 3, stride=2, padding=1), and the mean and biased variance of x.

    x: [N, C, H, W] channels_last. scale = gamma / sqrt(running_var + eps), shift = beta - running_mean * scale, and
    center (a value near the mean of x: the running mean) are float32 [C] (float64 for float64 x). Returns y,
    [N, C, ceil(H / 2), ceil(W / 2)] channels_last like x, and mean and var over N, H and W in scale's dtype, [C]. With
    output_center (a value near the mean of y, [C]) the mean and biased variance of y follow: all are differentiable in
    x. Sums are taken of deviations from the centers, so that a large mean costs no digits. Of equal maxima the first
    in row order gets the gradient, and a NaN is a maximum, as in torch. Raises ValueError for another memory layout,
    shape or dtype.
    """
    if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last) or x.numel() == 0:
        raise ValueError(
            "frozen_batch_norm_pool needs a 4-d channels_last input that is not empty, "
            f"got strides {x.stride()} for shape {tuple(x.shape)}"
        )
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    vectors = {"scale": scale, "shift": shift, "center": center}
    if output_center is not None:
        vectors["output_center"] = output_center
    for name, vector in vectors.items():
        if vector.shape != x.shape[1:2] or vector.dtype != wide or not vector.is_contiguous():
            raise ValueError(
                f"frozen_batch_norm_pool needs a contiguous {wide} {name} of shape {tuple(x.shape[1:2])}, "
                f"got {vector.dtype} of shape {tuple(vector.shape)} with strides {vector.stride()}"
            )
    if x.is_cuda and x.dtype != torch.float64:
        from .frozen_batch_norm_pool_triton import FrozenBatchNormPool

        return FrozenBatchNormPool.apply(x, scale, shift, center, output_center)
    if x.device.type == "cpu" and x.dtype == torch.float32:
        from .frozen_batch_norm_pool_numba import FrozenBatchNormPoolCPU

        return FrozenBatchNormPoolCPU.apply(x, scale, shift, center, output_center)
    return _composed(x, scale, shift, center, output_center)


def frozen_batch_norm_pool_reference(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
    """y, its input's and its own moments by autograd from the definition, for tests: any layout, best in float64."""
    y = F.max_pool2d(torch.relu(x * scale[:, None, None] + shift[:, None, None]), 3, stride=2, padding=1)
    moments = (moment for t in (x, y) for moment in (t.mean((0, 2, 3)), t.var((0, 2, 3), correction=0)))
    return y, *moments


def output_size(size: int) -> int:
    """Extent of the pooled feature: of a 3-wide window, stride 2 and padding 1."""
    return (size - 1) // 2 + 1


def _composed(
    x: Tensor, scale: Tensor, shift: Tensor, center: Tensor, output_center: Tensor | None
) -> tuple[Tensor, ...]:
    """The operator from PyTorch's own, in scale's dtype, for what has no kernel."""
    rows = x.to(scale.dtype)
    y = torch.relu(torch.addcmul(shift[:, None, None], rows, scale[:, None, None]))
    y = F.max_pool2d(y, 3, stride=2, padding=1)
    outputs = (y.to(x.dtype).contiguous(memory_format=torch.channels_last), *_moments(rows, center))
    return outputs if output_center is None else (*outputs, *_moments(y, output_center))


def _moments(x: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    deviation = x - center[:, None, None]
    shifted = deviation.mean((0, 2, 3))
    return center + shifted, (deviation - shifted[:, None, None]).square().mean((0, 2, 3))
