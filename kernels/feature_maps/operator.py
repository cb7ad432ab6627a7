"""The sums over a feature from which all statistics of a convolution's input follow: a read forward, a pass backward.

G-VBSM and EDC match channel and patch moments of every convolution's input. The resized tensor whose patches they
describe is linear in the feature, with two neighbours an axis, so that the patch moments are quadratic forms of maps
of sums over images and channels, which this operator emits, and `patch_moments` needs no other look at the feature.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.checks import check_map, wide_dtype
from .definition import feature_maps_reference


def feature_maps(
    x: Tensor,
    center: Tensor | None,
    *,
    has_neighbours: bool,
    has_channels: bool = True,
    map_center: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """x itself, its maps [2 or 6, H, W], and its mean and biased variance over N, H and W.

    The maps are sums over images and channels of d = x - map_center, of d^2 and, with neighbours, of the products
    d[h, w] * d[h + i, w + j] for (i, j) in NEIGHBOURS, where d is zero beyond the edge. Whoever goes on from the x that
    is returned (the same memory) sends its gradient through the one pass of this operator's backward.

    x: [N, C, H, W] channels_last. center (near the mean of x) is float32 [C], map_center (near the mean of all of x;
    zero if None) a float32 scalar tensor; both constants, of x's device, and float64 for float64 x. Maps, mean and var
    are float32, or float64; without channels, mean and var are None and center is not used. Raises ValueError for
    another memory layout, shape, dtype or device.
    """
    check_map("feature_maps", x)
    compute = wide_dtype(x)
    if map_center is None:
        map_center = torch.zeros((), dtype=compute, device=x.device)
    wanted: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {"map_center": (map_center, ())}
    if has_channels:
        wanted["center"] = (center, (x.shape[1],))
    for name, (value, shape) in wanted.items():
        if value is None or value.shape != shape or value.dtype != compute or value.device != x.device:
            got = "None" if value is None else f"{value.dtype} of shape {tuple(value.shape)} on {value.device}"
            raise ValueError(f"feature_maps needs {name} as {compute} of shape {shape} on {x.device}, got {got}")
    center = center if has_channels else None
    if x.is_cuda and compute == torch.float32:
        from . import gpu

        return gpu.FeatureMaps.apply(x, center, map_center, has_neighbours)
    if x.dtype in (torch.float32, torch.bfloat16):
        from . import cpu

        return cpu.FeatureMaps.apply(x, center, map_center, has_neighbours)
    _, maps, mean, var = feature_maps_reference(
        x.to(compute), has_neighbours=has_neighbours, has_channels=has_channels, map_center=map_center
    )
    return x, maps, mean, var
