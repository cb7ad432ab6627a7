"""One Adam step on the images that are being recovered, then the clip to the valid colour range."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def pixel_adam(
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
) -> None:
    """images <- clip(images - lr * m_hat / (sqrt(v_hat) + eps), low, high), in place; first and second are m and v.

    images, gradient, first, second: float32 [N, C, H, W]; images, first and second contiguous or channels_last, all of
    them in the same way. learning_rate: float32 scalar tensor; step: float32 scalar
    tensor, 1 in the first call: neither is read by the host of a GPU. low, high: float32 [C]. Kingma and Ba (ICLR'15),
    Algorithm 1, without weight decay. Raises ValueError for other layouts, shapes or dtypes.
    """
    for name, tensor in (("images", images), ("gradient", gradient), ("first", first), ("second", second)):
        if tensor.dtype != torch.float32:
            raise ValueError(f"pixel_adam needs float32 {name}, got {tensor.dtype}")
    for name, moment in (("gradient", gradient), ("first", first), ("second", second)):
        if moment.shape != images.shape:
            raise ValueError(f"pixel_adam needs {name} of shape {tuple(images.shape)}, got {tuple(moment.shape)}")
    for name, bound in (("low", low), ("high", high)):
        if bound.shape != images.shape[1:2]:
            raise ValueError(f"pixel_adam needs {name} of shape {tuple(images.shape[1:2])}, got {tuple(bound.shape)}")
    for name, state in (("images", images), ("first", first), ("second", second)):
        if not any(
            images.is_contiguous(memory_format=layout) and state.is_contiguous(memory_format=layout)
            for layout in (torch.contiguous_format, torch.channels_last)
        ):
            raise ValueError(
                f"pixel_adam needs {name} contiguous or channels_last like the images, of strides {images.stride()}, "
                f"got strides {state.stride()}"
            )
    arguments = (images, gradient, first, second, learning_rate, step)
    if images.is_cuda:
        from . import gpu

        gpu.pixel_adam(*arguments, betas=betas, low=low, high=high, eps=eps)
    else:
        from . import cpu

        cpu.pixel_adam(*arguments, betas=betas, low=low, high=high, eps=eps)
