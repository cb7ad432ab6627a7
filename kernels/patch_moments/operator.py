"""Means and variances of the patches of a resized feature, from the feature's maps: the resized tensor never exists.

Bilinear resizing is y = A x B^T, where a row of A or B has one or two adjacent entries. Over a patch, with A_u the p
rows of A that it takes, the sum of y is 1^T A_u x B_v^T 1, and the sum of y^2 is a quadratic form of x with the
tridiagonal matrices A_u^T A_u and B_v^T B_v: nothing but neighbours' products is asked for.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F


def needs_neighbours(height: int, width: int, p: int) -> bool:
    """Whether patches of side p need a resized feature: height or width is no multiple of p."""
    return height % p != 0 or width % p != 0


def patch_moments(
    maps: Tensor, num_images: int, channels: int, p: int, map_center: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every p x p patch over images, channels and pixels of the resized feature.

    maps: [2 or 6, H, W] from `feature_maps`, of num_images images with `channels` channels, centred on map_center (a
    scalar tensor, constant; zero if None). The feature counts as resized to the next multiples of p, bilinear with
    align_corners=False. Returns two [P], P = ceil(H / p) * ceil(W / p), row-major over the patches, in the maps'
    dtype; differentiable in the maps. G-VBSM (CVPR'24) and EDC (NeurIPS'24) have p = 16 at 224 pixels, p = 4 at 32 and
    64. Sums are in float64: they are short, a variance is a difference, and no TF32 setting applies. Reads no value
    on the host; the matrices of a size are made in its first call. Raises ValueError if the maps lack neighbours.
    """
    num_maps, height, width = maps.shape
    if num_maps != 6 and (num_maps != 2 or needs_neighbours(height, width, p)):
        raise ValueError(f"patch_moments of side {p} needs 6 maps (2 for multiples of it), got {tuple(maps.shape)}")
    return _PatchMoments.apply(maps, num_images * channels, p, map_center)


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


class _PatchMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps, count, p, map_center):
        num_maps, height, width = maps.shape
        if num_maps == 2:
            tiles = maps.unflatten(1, (-1, p)).unflatten(3, (-1, p))
            moments = tiles.sum((2, 4), dtype=torch.float64)
            scale = 1 / (count * p * p)
        else:
            left, right = patch_weights(height, width, p, maps.device)
            moments = (left @ (maps.double() @ right).flatten(0, 1)).unflatten(0, (2, -1))
            scale = 1 / count
        mean, var = moments.mul_(scale).flatten(1).unbind()
        var.addcmul_(mean, mean, value=-1)
        ctx.save_for_backward(mean)
        ctx.size, ctx.dtype, ctx.p, ctx.scale = maps.shape, maps.dtype, p, scale
        ctx.set_materialize_grads(False)
        shifted = mean if map_center is None else mean + map_center
        return shifted.to(maps.dtype, copy=True), var.to(maps.dtype, copy=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dmean, dvar):
        (mean,) = ctx.saved_tensors
        num_maps, height, width = ctx.size
        p, rows = ctx.p, -(-height // ctx.p)
        dsum = torch.zeros_like(mean) if dmean is None else dmean.double()
        dsquare = torch.zeros_like(mean) if dvar is None else dvar.double()
        dsum = torch.addcmul(dsum, mean, dsquare, value=-2)
        dmoments = torch.stack([dsum, dsquare]).mul_(ctx.scale).unflatten(1, (rows, -1))
        if num_maps == 2:
            dmaps = dmoments.to(ctx.dtype)[:, :, None, :, None].expand(-1, -1, p, -1, p).reshape(ctx.size)
        else:
            left, right = patch_weights(height, width, p, mean.device)
            dmaps = ((left.mT @ dmoments.flatten(0, 1)).unflatten(0, (num_maps, height)) @ right.mT).to(ctx.dtype)
        return dmaps, None, None, None
