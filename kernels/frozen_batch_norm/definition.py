"""What a frozen BatchNorm with its moments is, in plain PyTorch."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional as F

Activation = Literal["none", "relu", "relu6", "silu", "hardswish"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


def frozen_batch_norm_reference(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    residual: Tensor | None = None,
    activation: Activation = "none",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`frozen_batch_norm` by autograd: any layout, in the vectors' dtype, best float64; always with y's moments."""
    wide = x.to(scale.dtype)
    y = wide * scale[:, None, None] + shift[:, None, None]
    if residual is not None:
        y = y + residual
    if activation != "none":
        y = getattr(F, activation)(y)
    y = y.to(x.dtype)
    return (y, *channel_moments(wide), *channel_moments(y.to(scale.dtype)))


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over N, H and W: [N, C, H, W] -> [C] each."""
    return x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
