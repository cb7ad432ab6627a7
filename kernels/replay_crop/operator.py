"""Views of a resident uint8 set in one pass: crop, flip, roll, normalisation and CutMix or mixup, from tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..crop.operator import check_overhang


@torch.no_grad()
def replay_crop(
    images: Tensor,
    ids: Tensor,
    windows: Tensor,
    size: int,
    *,
    gain: Tensor,
    offset: Tensor,
    partners: Tensor | None = None,
    partner_windows: Tensor | None = None,
    boxes: Tensor | None = None,
    share: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The views [B, C, size, size], channels_last, that `crop` makes of images[ids], mixed with those of the partners.

    images: uint8 [M, C, H, W], contiguous, of which only the rows `ids` and `partners`, int64 [B], are read. windows,
    partner_windows: int32 [B, 7], as `crop` takes them. gain, offset: float32 [C]. boxes: int32 or int64 [B, 4], top,
    bottom, left, right inside the view, ends excluded: there the partner's pixels are seen (CutMix, Yun et al.,
    ICCV'19). share: float32 [B]: share * own + (1 - share) * partner's (mixup, Zhang et al., ICLR'18). Arithmetic is in
    float32; dtype: float32, bfloat16 or float16. No gradient. Raises ValueError for other shapes, dtypes or layouts,
    and, on the CPU only (no sync), for a resized window over the image's edge and for ids that do not exist.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or not images.is_contiguous():
        raise ValueError(
            f"replay_crop needs contiguous uint8 images of 4 dimensions, got {images.dtype}, "
            f"shape {tuple(images.shape)} and strides {images.stride()}"
        )
    is_mixed = boxes is not None or share is not None
    if (boxes is not None and share is not None) or is_mixed != (partners is not None and partner_windows is not None):
        raise ValueError("replay_crop needs partners and partner_windows with either boxes or share, or none of them")
    batch, (_, channels, height, width) = len(ids), images.shape
    tables: dict[str, tuple[Tensor | None, tuple[int, ...], torch.dtype]] = {
        "ids": (ids, (batch,), torch.int64),
        "windows": (windows, (batch, 7), torch.int32),
        "partners": (partners, (batch,), torch.int64),
        "partner_windows": (partner_windows, (batch, 7), torch.int32),
        "boxes": (boxes, (batch, 4), torch.int32),
        "share": (share, (batch,), torch.float32),
        "gain": (gain, (channels,), torch.float32),
        "offset": (offset, (channels,), torch.float32),
    }
    for name, (tensor, shape, _) in tables.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"replay_crop needs {name} of shape {shape}, got {tuple(tensor.shape)}")
    moved: dict[str, Any] = {
        name: None if tensor is None else tensor.to(images.device, kind).contiguous()
        for name, (tensor, _, kind) in tables.items()
    }
    if images.is_cuda:
        from . import gpu

        return gpu.replay_crop(images, size=size, dtype=dtype, **moved)
    from . import cpu

    for table in (windows, partner_windows):
        if table is not None:
            check_overhang(table, height, width, size)
    for rows in (ids, partners):
        if rows is not None and batch and not 0 <= int(rows.min()) <= int(rows.max()) < len(images):
            raise ValueError(f"replay_crop needs ids of {len(images)} images, got {int(rows.min())}..{int(rows.max())}")
    return cpu.replay_crop(images, size=size, dtype=dtype, **moved)
