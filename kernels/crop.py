"""Windowed crop, resize, flip and roll of a batch; forward and exact adjoint are gathers: deterministic, no scatter.

Each output row is a weighted mean of source rows, and each output column of source columns.
"""

from __future__ import annotations

import torch
from torch import Tensor


def crop(
    images: Tensor,
    windows: Tensor,
    size: int,
    *,
    offset: Tensor | None = None,
    gain: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Bilinear, antialiased crops: (resized window) * gain + offset, mirrored and rolled.

    images: [N, C, H, W], floating or uint8 (values kept). windows: integer [N, 7], or [1, 7] for one window shared by
    the batch; columns top, left, height, width, flip, roll_y, roll_x. offset, gain: float32 [C], applied after the
    crop (normalisation). Returns [N, C, size, size] channels_last, of `dtype`: float32 if None (float64 for float64
    images); arithmetic is in float32 or float64. Differentiable in the images. Equals torchvision's
    resized_crop(antialias=True) on tensors, then horizontal flip, then roll. A window may hang over the image's edge
    (zeros are seen there) only if it is not resized.
    Raises ValueError if the shapes do not match or such a window is resized, the latter only on the CPU (no sync).
    """
    num_images, channels, height, width = images.shape
    if windows.dim() != 2 or windows.shape[1] != 7 or windows.shape[0] not in (1, num_images):
        raise ValueError(f"crop needs windows of shape [{num_images}, 7] or [1, 7], got {tuple(windows.shape)}")
    for name, vector in (("gain", gain), ("offset", offset)):
        if vector is not None and vector.shape != (channels,):
            raise ValueError(f"crop needs {name} of shape [{channels}], got {tuple(vector.shape)}")
    if windows.device.type == "cpu":
        check_overhang(windows, height, width, size)
    windows = windows.to(images.device)
    if images.dtype == torch.float64:
        return _dense_crop(images, windows, size, gain, offset).to(dtype or torch.float64)
    windows = windows.int().contiguous()
    if images.is_cuda:
        from .crop_triton import Crop

        return Crop.apply(images, windows, size, gain, offset, dtype or torch.float32)
    from . import crop_numba

    images = images if images.dtype == torch.uint8 else images.float()
    if not images.is_contiguous():
        images = images.contiguous(memory_format=torch.channels_last)
    gain = images.new_ones(channels, dtype=torch.float32) if gain is None else gain.float().contiguous()
    offset = torch.zeros_like(gain) if offset is None else offset.float().contiguous()
    return crop_numba.Crop.apply(images, windows, size, gain, offset).to(dtype or torch.float32)


def _dense_crop(images: Tensor, windows: Tensor, size: int, gain: Tensor | None, offset: Tensor | None) -> Tensor:
    """The same as two small matrix products, Wy @ image @ Wx^T, in float64; autograd applies the transposed ones."""
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


def check_overhang(windows: Tensor, height: int, width: int, size: int) -> None:
    """Raises ValueError if a window [N, 7] that is resized hangs over the edge of its image."""
    for axis, extent in enumerate((height, width)):
        start, length = windows[:, axis], windows[:, axis + 2]
        over = (start < 0) | (start + length > extent)
        if bool((over & (length != size)).any()):
            raise ValueError(f"crop needs windows inside the image (extent {extent}) unless they are {size} long")
