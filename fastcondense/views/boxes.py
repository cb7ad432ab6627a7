"""CutMix boxes: the part of a view that its partner covers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def inside(boxes: Tensor, size: int) -> Tensor:
    """Which pixels lie in boxes [N, 4] of top, bottom, left, right (ends excluded): bool [N, 1, size, size]."""
    at, (top, bottom, left, right) = torch.arange(size, device=boxes.device), boxes[:, :, None].unbind(1)
    rows, columns = (at >= top) & (at < bottom), (at >= left) & (at < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def cutmix_boxes(lam: np.ndarray, u_row: np.ndarray, u_column: np.ndarray, size: int) -> np.ndarray:
    """Top, bottom, left, right (ends excluded), int64 [N, 4]: sides floor(size sqrt(1 - lambda)), clipped."""
    side = np.floor(size * np.sqrt(1 - lam)).astype(np.int64)
    corners = []
    for u in (u_row, u_column):
        centre = np.floor(u * size).astype(np.int64)
        corners += [np.clip(centre - side // 2, 0, size), np.clip(centre + side // 2, 0, size)]
    return np.stack(corners, 1)
