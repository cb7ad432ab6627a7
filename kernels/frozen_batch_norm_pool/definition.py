"""What a frozen BatchNorm with ReLU and max-pooling is, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..frozen_batch_norm.definition import channel_moments


def frozen_batch_norm_pool_reference(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
    """`frozen_batch_norm_pool` by autograd in the vectors' dtype, best float64; any layout, always with y's moments."""
    wide = x.to(scale.dtype)
    y = F.max_pool2d(torch.relu(wide * scale[:, None, None] + shift[:, None, None]), 3, stride=2, padding=1).to(x.dtype)
    return (y, *channel_moments(wide), *channel_moments(y.to(scale.dtype)))


def output_size(size: int) -> int:
    """Extent of the pooled feature: of a 3-wide window, stride 2 and padding 1."""
    return (size - 1) // 2 + 1
