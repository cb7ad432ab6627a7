"""What a replayed view is: the crop of a gathered image, mixed with that of its partner."""

from __future__ import annotations

import torch
from torch import Tensor

from ..crop.definition import crop_reference


def replay_crop_reference(
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
) -> Tensor:
    """`replay_crop` in float64, from gathered images."""

    def views(ids: Tensor, windows: Tensor) -> Tensor:
        return crop_reference(images[ids].double(), windows.to(images.device), size, gain.double(), offset.double())

    own = views(ids, windows)
    if partners is None or partner_windows is None:
        return own
    others = views(partners, partner_windows)
    if share is not None:
        weight = share.double()[:, None, None, None]
        return weight * own + (1 - weight) * others
    assert boxes is not None
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    at = torch.arange(size, device=boxes.device)
    inside = ((at >= top) & (at < bottom))[:, :, None] & ((at >= left) & (at < right))[:, None, :]
    return torch.where(inside[:, None], others, own)
