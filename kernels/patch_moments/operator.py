"""Means and variances of the patches of a resized feature, from the feature's maps: the resized tensor never exists.

Bilinear resizing is y = A x B^T, where a row of A or B has one or two adjacent entries. Over a patch, with A_u the p
rows of A that it takes, the sum of y is 1^T A_u x B_v^T 1, and the sum of y^2 is a quadratic form of x with the
tridiagonal matrices A_u^T A_u and B_v^T B_v: nothing but neighbours' products is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def needs_neighbours(height: int, width: int, p: int) -> bool:
    """Whether patches of side p need a resized feature: height or width is no multiple of p."""
    return height % p != 0 or width % p != 0


def patch_moments(
    maps: Tensor, num_images: int, channels: int | Sequence[int], p: int, map_center: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every p x p patch over images, channels and pixels of the resized feature.

    maps: [2 or 6, H, W] from `feature_maps`, of num_images images with `channels` channels, centred on map_center (a
    scalar tensor, constant; zero if None). The feature counts as resized to the next multiples of p, bilinear with
    align_corners=False. Returns two [P], P = ceil(H / p) * ceil(W / p), row-major over the patches, in the maps'
    dtype; differentiable in the maps. L features of one size are taken together, which launches no more than one does:
    maps [L, 2 or 6, H, W], L channels, map_center [L], and two [L, P]. G-VBSM (CVPR'24) and EDC (NeurIPS'24) have
    p = 16 at 224 pixels, p = 4 at 32 and 64. Sums are in float64: they are short, a variance is a difference, and no
    TF32 setting applies. Reads no value on the host; the matrices of a size are made in its first call. Raises
    ValueError if the maps lack neighbours.
    """
    num_maps, height, width = maps.shape[-3:]
    if num_maps != 6 and (num_maps != 2 or needs_neighbours(height, width, p)):
        raise ValueError(f"patch_moments of side {p} needs 6 maps (2 for multiples of it), got {tuple(maps.shape)}")
    if isinstance(channels, int):
        center = None if map_center is None else map_center[None]
        mean, var = _PatchMoments.apply(maps[None], (num_images * channels,), p, center)
        return mean[0], var[0]
    return _PatchMoments.apply(maps, tuple(num_images * count for count in channels), p, map_center)


def interpolation_matrix(size: int, p: int) -> Tensor:
    """float64 [next multiple of p, size]: bilinear resizing of one axis, align_corners=False."""
    resized = -(-size // p) * p
    source = ((torch.arange(resized, dtype=torch.float64) + 0.5) * (size / resized) - 0.5).clamp_(0, size - 1)
    return (1 - (source[:, None] - torch.arange(size)).abs()).clamp_(min=0)


@functools.cache
def patch_weights(height: int, width: int, p: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Matrices L [2 U, 6 H] and R [6, W, V] such that L @ (maps @ R) are the patches' sums of y and y^2, over p^2."""

    def bands(size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # [patches, size] each: sums of columns, and the Gram matrices' diagonals h = h', h' = h + 1 and h' = h - 1
        matrix = interpolation_matrix(size, p).unflatten(0, (-1, p))
        gram = matrix.mT @ matrix / p
        upper = F.pad(gram.diagonal(1, 1, 2), (0, 1))
        return matrix.sum(1) / p, gram.diagonal(0, 1, 2), upper, upper.roll(1, 1)

    total, same, below, _ = bands(height)
    none = torch.zeros_like(total)
    sums = torch.stack([total, none, none, none, none, none], 1)
    squares = torch.stack([none, same, 2 * same, 2 * below, 2 * below, 2 * below], 1)
    left = torch.stack([sums, squares]).flatten(0, 1).flatten(1)
    total, same, after, before = bands(width)
    right = torch.stack([total, same, after, same, after, before]).mT
    return left.to(device), right.contiguous().to(device)


@functools.cache
def _scales(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """1 / count of each feature, float64 [L, 1, 1, 1]."""
    return torch.tensor(counts, dtype=torch.float64).reciprocal_()[:, None, None, None].to(device)


class _PatchMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps, counts, p, map_center):
        num_maps, height, width = maps.shape[1:]
        if num_maps == 2:
            tiles = maps.unflatten(2, (-1, p)).unflatten(4, (-1, p))
            moments = tiles.sum((3, 5), dtype=torch.float64)
            scale = _scales(tuple(count * p * p for count in counts), maps.device)
        else:
            left, right = patch_weights(height, width, p, maps.device)
            moments = (left @ (maps.double() @ right).flatten(1, 2)).unflatten(1, (2, -1))
            scale = _scales(counts, maps.device)
        mean, var = moments.mul_(scale).flatten(2).unbind(1)
        var.addcmul_(mean, mean, value=-1)
        ctx.save_for_backward(mean, scale)
        ctx.size, ctx.dtype, ctx.p = maps.shape, maps.dtype, p
        ctx.set_materialize_grads(False)
        shifted = mean if map_center is None else mean + map_center[:, None]
        return shifted.to(maps.dtype, copy=True), var.to(maps.dtype, copy=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dmean, dvar):
        mean, scale = ctx.saved_tensors
        _, num_maps, height, width = ctx.size
        p, rows = ctx.p, -(-height // ctx.p)
        dsum = torch.zeros_like(mean) if dmean is None else dmean.double()
        dsquare = torch.zeros_like(mean) if dvar is None else dvar.double()
        dsum = torch.addcmul(dsum, mean, dsquare, value=-2)
        dmoments = torch.stack([dsum, dsquare], 1).unflatten(2, (rows, -1)).mul_(scale)
        if num_maps == 2:
            dmaps = dmoments.to(ctx.dtype)[:, :, :, None, :, None].expand(-1, -1, -1, p, -1, p).reshape(ctx.size)
        else:
            left, right = patch_weights(height, width, p, mean.device)
            rows_of = (left.mT @ dmoments.flatten(1, 2)).unflatten(1, (num_maps, height))
            dmaps = (rows_of @ right.mT).to(ctx.dtype)
        return dmaps, None, None, None
