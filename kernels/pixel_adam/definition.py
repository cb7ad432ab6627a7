"""What a step of Adam and the clip are, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_adam_reference(
    images: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    learning_rate: Tensor,
    step: Tensor,
    *,
    betas: tuple[float, float],
    low: Tensor,
    high: Tensor,
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor, Tensor]:
    """New images, first and second moments, in the images' dtype, best float64."""
    beta1, beta2 = betas
    first = torch.lerp(first, gradient, 1 - beta1)
    second = beta2 * second + (1 - beta2) * gradient.square()
    scale = torch.sqrt(second / (1 - beta2**step)) + eps
    images = images - learning_rate / (1 - beta1**step) * first / scale
    return images.clamp(low[:, None, None], high[:, None, None]), first, second
