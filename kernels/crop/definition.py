"""What a crop is: each output row a weighted mean of source rows, each output column of source columns."""

from __future__ import annotations

import torch
from torch import Tensor


def crop_reference(images: Tensor, windows: Tensor, size: int, gain: Tensor | None, offset: Tensor | None) -> Tensor:
    """`crop` as two small matrix products, Wy @ image @ Wx^T, in the images' dtype; windows: integer [N or 1, 7]."""
    top, left, rows, columns, flip, roll_y, roll_x = windows.unbind(1)
    along_y = axis_weights(top, rows, images.shape[2], size, torch.zeros_like(flip), roll_y)
    along_x = axis_weights(left, columns, images.shape[3], size, flip, roll_x)
    x = along_y[:, None] @ images @ along_x[:, None].transpose(2, 3)
    x = x if gain is None else x * gain[:, None, None]
    x = x if offset is None else x + offset[:, None, None]
    return x.contiguous(memory_format=torch.channels_last)


def axis_weights(start: Tensor, length: Tensor, extent: int, size: int, flip: Tensor, roll: Tensor) -> Tensor:
    """Interpolation weights of one axis: float64 [N, size, extent] from integer [N] tables.

    Output o reads the triangle of half-width max(length / size, 1) around its centre, cut at the window's ends and
    normalised: the filter of Pillow and of torchvision with antialias.
    """
    # [N, size]: where each output lies before roll and flip
    output = (torch.arange(size, device=start.device) - roll[:, None]) % size
    output = torch.where(flip[:, None] != 0, size - 1 - output, output)
    step = length.double()[:, None] / size
    center = (output + 0.5) * step
    position = torch.arange(extent, device=start.device) - start[:, None]  # [N, extent]: source index in the window
    distance = (position[:, None, :] + 0.5 - center[:, :, None]).abs() / step.clamp(min=1)[:, :, None]
    inside = (position >= 0) & (position < length[:, None])
    weights = (1 - distance).clamp_(min=0) * inside[:, None, :]
    total = weights.sum(2, keepdim=True)
    return weights / torch.where(total > 0, total, 1)
