"""patch_moments of feature_maps against resizing the feature and cutting it up, in float64."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, TOLERANCE, relative_rms
from torch import Tensor
from torch.nn import functional as F

from fastcondense.kernels.feature_maps import feature_maps
from fastcondense.kernels.patch_moments import needs_neighbours, patch_moments
from fastcondense.kernels.patch_moments.definition import patch_moments_reference
from fastcondense.kernels.patch_moments.operator import interpolation_matrix

SIDES = [1, 7, 14, 17, 32, 56, 224]
SIZES = [*((side, side) for side in SIDES), (9, 13), (1, 5), (48, 20)]


def make(height: int, width: int, dtype: torch.dtype, mean: float = 0.3) -> Tensor:
    """A feature that differs from place to place; at most 1e6 elements, of one image where it is large."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 3, height, width) if height * width > 3136 else (2, 24, height, width)
    slope = torch.linspace(-1, 1, height)[:, None] + torch.linspace(-0.5, 1, width)
    x = torch.randn(shape, generator=generator) + slope + mean
    return x.to(dtype).contiguous(memory_format=torch.channels_last).to(DEVICE)


def statistics(x: Tensor, p: int, map_center: Tensor) -> list[Tensor]:
    """What a convolution is matched on, and the way on: x, patch means and variances, channel means and variances."""
    num_images, channels, height, width = x.shape
    center = map_center.expand(channels)
    on, maps, mean, var = feature_maps(
        x, center, has_neighbours=needs_neighbours(height, width, p), map_center=map_center
    )
    assert mean is not None and var is not None
    return [on, *patch_moments(maps, num_images, channels, p, map_center), mean, var]


def resized_statistics(x: Tensor, p: int) -> list[Tensor]:
    return [x, *patch_moments_reference(x, p), x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)]


def loss(outputs: list[Tensor], upstream: Tensor) -> Tensor:
    """A smooth function of all moments, of which each has a share, and a gradient that comes from further up."""
    moments = sum((moment - 0.5).square().sum() * weight for weight, moment in enumerate(outputs[1:], start=1))
    return moments.log() + (outputs[0] * upstream).sum()


@pytest.mark.parametrize("p", [16, 4])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_equals_resizing(size: tuple[int, int], p: int, dtype: torch.dtype) -> None:
    x = make(*size, dtype)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    map_center = torch.tensor(0.25, dtype=compute, device=DEVICE)
    leaf, leaf64 = x.clone().requires_grad_(), x.double().requires_grad_()
    got, wanted = statistics(leaf, p, map_center), resized_statistics(leaf64, p)
    for a, b in zip(got, wanted, strict=True):
        assert relative_rms(a, b) <= (1e-12 if dtype == torch.float64 else 1e-6)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x) / x.numel()
    (dx,) = torch.autograd.grad(loss(got, upstream), leaf)
    (expected,) = torch.autograd.grad(loss(wanted, upstream.double()), leaf64)
    assert relative_rms(dx, expected) <= TOLERANCE.get(dtype, 1e-12)


@pytest.mark.parametrize("size", [(14, 14), (16, 32), (224, 224)], ids=str)
def test_a_large_mean_costs_no_digits(size: tuple[int, int]) -> None:
    x = make(*size, torch.float32, mean=100.0)
    _, mean, var, _, _ = statistics(x, 16, torch.tensor(100.5, device=DEVICE))
    wanted_mean, wanted_var = patch_moments_reference(x.double(), 16)
    assert relative_rms(mean, wanted_mean) <= 1e-7 and relative_rms(var, wanted_var) <= 1e-6


def test_order_of_the_patches() -> None:
    """Row-major: the patch at rows 4 to 7 and columns 8 to 11 of a 3 x 4 grid is number 1 * 4 + 2."""
    x = torch.zeros(1, 1, 12, 16, dtype=torch.float64)
    x[:, :, 4:8, 8:12] = 1
    mean, var = patch_moments(feature_maps(x, None, has_neighbours=False, has_channels=False)[1], 1, 1, 4)
    assert mean.tolist() == [float(patch == 6) for patch in range(12)] and not var.any()


@pytest.mark.parametrize("size", [(16, 16), (6, 9)], ids=str)
def test_zero_distance_and_a_constant_feature_have_zero_gradients(size: tuple[int, int]) -> None:
    x = make(*size, torch.float32).requires_grad_()
    moments = torch.cat(statistics(x, 4, torch.zeros((), device=DEVICE))[1:])
    (dx,) = torch.autograd.grad((moments - moments.detach()).norm(), x)
    assert not dx.any()
    x = torch.full_like(x, 0.75).requires_grad_()
    _, mean, var, _, _ = statistics(x, 4, torch.tensor(0.75, device=DEVICE))
    (dx,) = torch.autograd.grad(var.sum(), x)
    assert not dx.any() and not var.any() and torch.equal(mean, torch.full_like(mean, 0.75))


@pytest.mark.parametrize("size", [(4, 8), (3, 5)], ids=str)
def test_gradcheck(size: tuple[int, int]) -> None:
    num_maps = 6 if needs_neighbours(*size, 4) else 2
    maps = torch.randn(num_maps, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    map_center = torch.tensor(0.5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda maps: patch_moments(maps, 2, 3, 4, map_center), maps.requires_grad_())
    for which in (0, 1):
        assert torch.autograd.gradcheck(lambda maps, i=which: patch_moments(maps, 2, 3, 4)[i], maps)


def test_maps_with_neighbours_serve_multiples_too() -> None:
    x = make(8, 12, torch.float64)
    both = [feature_maps(x, None, has_neighbours=has, has_channels=False)[1] for has in (False, True)]
    few, many = (torch.cat(patch_moments(maps, 2, 24, 4)) for maps in both)
    assert relative_rms(many, few) <= 1e-12


@pytest.mark.parametrize("size", [(14, 14), (16, 8), (5, 7)], ids=str)
def test_features_of_one_size_are_taken_together(size: tuple[int, int]) -> None:
    """Each with its own number of channels and centre: moments and gradients are those of each alone."""
    channels, p = [3, 24, 7], 8
    centers = torch.tensor([0.25, -1.0, 0.0], device=DEVICE)
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 6 if needs_neighbours(*size, p) else 2, *size, generator=generator).to(DEVICE)
    maps.requires_grad_()
    alone = [patch_moments(maps[k], 2, channels[k], p, centers[k]) for k in range(3)]
    together = patch_moments(maps, 2, channels, p, centers)
    gradients = []
    for found in (tuple(map(torch.stack, zip(*alone, strict=True))), together):
        loss = (found[0].sin() + 3 * found[1].cos()).square().sum()
        gradients.append((*found, *torch.autograd.grad(loss, maps)))
    for a, b in zip(*gradients, strict=True):
        assert relative_rms(a, b.double()) <= 1e-7


@pytest.mark.parametrize("size", [1, 7, 16, 17, 56])
def test_interpolation_is_pytorchs(size: int) -> None:
    matrix = interpolation_matrix(size, 16)
    unit = torch.eye(size, dtype=torch.float64)[None, None]
    wanted = F.interpolate(unit, (matrix.shape[0], size), mode="bilinear", align_corners=False)[0, 0]
    assert relative_rms(matrix, wanted) <= 1e-14


def test_maps_without_neighbours_are_refused() -> None:
    assert needs_neighbours(16, 24, 16) and needs_neighbours(7, 16, 4) and not needs_neighbours(16, 24, 4)
    with pytest.raises(ValueError, match="6 maps"):
        patch_moments(torch.zeros(2, 16, 24), 1, 1, 16)
    with pytest.raises(ValueError, match="6 maps"):
        patch_moments(torch.zeros(3, 16, 16), 1, 1, 16)
