"""What the maps of a feature are: sums over images and channels of its elements, their squares and products."""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # by symmetry the other half of the eight


def feature_maps_reference(
    x: Tensor, *, has_neighbours: bool, has_channels: bool = True, map_center: Tensor | float = 0.0
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """`feature_maps` by autograd: any layout, in x's dtype."""
    deviation = x - map_center
    products = [deviation, deviation.square()]
    if has_neighbours:
        height, width = x.shape[2:]
        padded = torch.nn.functional.pad(deviation, (1, 1, 0, 1))
        products += [
            deviation * padded[:, :, down : down + height, 1 + right : 1 + right + width] for down, right in NEIGHBOURS
        ]
    maps = torch.stack([product.sum((0, 1)) for product in products])
    if not has_channels:
        return x, maps, None, None
    return x, maps, x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
