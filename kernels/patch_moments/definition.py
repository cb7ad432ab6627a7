"""What patch moments are: those of every patch of the resized feature."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def patch_moments_reference(x: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """`patch_moments` by resizing x: [N, C, H, W], and cutting it up; differentiable in x, best in float64."""
    rows, columns = (-(-size // p) for size in x.shape[2:])
    y = F.interpolate(x, (rows * p, columns * p), mode="bilinear", align_corners=False)
    patches = y.unflatten(2, (rows, p)).unflatten(4, (columns, p)).permute(2, 4, 0, 1, 3, 5)
    patches = patches.reshape(rows * columns, -1)
    return patches.mean(1), patches.var(1, correction=0)
