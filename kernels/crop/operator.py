"""Windowed crop, resize, flip and roll of a batch; forward and exact adjoint are gathers: deterministic, no scatter.

Each output row is a weighted mean of source rows, and each output column of source columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .definition import crop_reference

TAKEN = (torch.uint8, torch.float32, torch.bfloat16)
"""Images that the CPU's loops read as they are."""


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
        return crop_reference(images, windows, size, gain, offset).to(dtype or torch.float64)
    windows = windows.int().contiguous()
    if images.is_cuda:
        from . import gpu

        return gpu.Crop.apply(images, windows, size, gain, offset, dtype or torch.float32)
    from . import cpu

    images = images if images.dtype in TAKEN else images.float()
    if not images.is_contiguous():
        images = images.contiguous(memory_format=torch.channels_last)
    gain = images.new_ones(channels, dtype=torch.float32) if gain is None else gain.float().contiguous()
    offset = torch.zeros_like(gain) if offset is None else offset.float().contiguous()
    dtype = dtype or torch.float32
    made = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    return cpu.Crop.apply(images, windows, size, gain, offset, made).to(dtype)


def check_overhang(windows: Tensor, height: int, width: int, size: int) -> None:
    """Raises ValueError if a window [N, 7] that is resized hangs over the edge of its image."""
    table = windows.numpy()  # whose operators cost a third of torch's
    for axis, extent in enumerate((height, width)):
        start, length = table[:, axis], table[:, axis + 2]
        over = (start < 0) | (start + length > extent)
        if (over & (length != size)).any():
            raise ValueError(f"crop needs windows inside the image (extent {extent}) unless they are {size} long")
