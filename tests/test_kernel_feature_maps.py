"""feature_maps' Triton kernels against float64 autograd of the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_checks import DEVICE, TOLERANCE, poisoned, relative_rms
from torch import Tensor

from fastcondense.kernels.common import launch
from fastcondense.kernels.common.launch import pixel_tiles
from fastcondense.kernels.feature_maps import feature_maps, gpu
from fastcondense.kernels.feature_maps.definition import feature_maps_reference
from fastcondense.kernels.feature_maps.gpu import FeatureMaps
from fastcondense.kernels.patch_moments import needs_neighbours, patch_moments
from fastcondense.kernels.patch_moments.definition import patch_moments_reference

SHAPES = [(3, 64, 9, 13), (1, 3, 7, 7), (2, 24, 1, 1), (1, 116, 5, 3), (2, 512, 4, 3), (5, 8, 1, 7), (1, 1, 1, 1)]
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


def make(shape: tuple[int, ...], dtype: torch.dtype, mean: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """x, a center a channel and one for all, each half a standard deviation off."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * 1.5 + mean).to(dtype).contiguous(memory_format=torch.channels_last)
    return x.to(DEVICE), torch.full((shape[1],), mean + 0.75, device=DEVICE), torch.tensor(mean - 0.75, device=DEVICE)


def weights(outputs: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = outputs[0].numel() // outputs[0].shape[1]  # so that the moments' share of dx is as large as x's
    return [
        (torch.randn(output.shape, generator=generator) * scale).to(output)
        for output, scale in zip(outputs, (1, 1, rows, rows), strict=False)
    ]


def run(x: Tensor, center: Tensor | None, map_center: Tensor, has_neighbours: bool) -> list[Tensor]:
    """Outputs without None, then the gradient of a sum with random weights, from the kernels."""
    leaf = x.detach().clone().requires_grad_()
    with poisoned():
        outputs = FeatureMaps.apply(leaf, center, map_center, has_neighbours)
        given = [output for output in outputs if output is not None]
        return [*given, *torch.autograd.grad(given, leaf, weights(given))]


def expect(x: Tensor, map_center: Tensor, seeds: list[Tensor], has_neighbours: bool) -> list[Tensor]:
    leaf = x.detach().double().requires_grad_()
    outputs = feature_maps_reference(
        leaf, has_neighbours=has_neighbours, has_channels=len(seeds) == 4, map_center=map_center.double()
    )
    given = [output for output in outputs if output is not None]
    return [*given, *torch.autograd.grad(given, leaf, [seed.double() for seed in seeds])]


@pytest.mark.parametrize(
    ("dtype", "has_neighbours", "has_channels"),
    [*((FLOAT32, *flags) for flags in np.ndindex(2, 2)), (BFLOAT16, True, True)],
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(
    shape: tuple[int, ...], has_neighbours: bool, has_channels: bool, dtype: torch.dtype
) -> None:
    x, center, map_center = make(shape, dtype)
    got = run(x, center if has_channels else None, map_center, has_neighbours)
    wanted = expect(x, map_center, weights(got[:-1]), has_neighbours)
    names = ["x", "maps", "mean", "var", "dx"] if has_channels else ["x", "maps", "dx"]
    for name, a, b in zip(names, got, wanted, strict=True):
        limit = TOLERANCE[dtype if name == "dx" else FLOAT32]
        assert relative_rms(a, b, floor=0.5 if name == "var" else 0.0) <= limit, name
    assert got[0].dtype == got[-1].dtype == dtype and got[1].dtype == FLOAT32
    assert got[-1].is_contiguous(memory_format=torch.channels_last)


def test_chunks_of_several_images_and_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Big tensors make programs loop; few programs a tensor make small ones do, with a last chunk that is cut short."""
    x, center, map_center = make((7, 72, 5, 9), FLOAT32)
    monkeypatch.setattr(launch, "_PROGRAMS", 16)
    monkeypatch.setattr(gpu, "COMBINE_P", 2)
    tiles = pixel_tiles(7, 72, 45)
    assert tiles.num_tiles > 1 and tiles.num_columns > 1 and 1 < tiles.chunk < 7 and 7 % tiles.chunk
    assert tiles.num_chunks * tiles.num_columns > 4
    got = run(x, center, map_center, True)
    wanted = expect(x, map_center, weights(got[:-1]), True)
    assert all(relative_rms(a, b) <= 1e-6 for a, b in zip(got, wanted, strict=True))


def test_float16() -> None:
    x, center, map_center = make((2, 24, 3, 3), FLOAT16)
    got = run(x, center, map_center, True)
    wanted = expect(x, map_center, weights(got[:-1]), True)
    assert all(relative_rms(a, b) <= 1e-6 for a, b in zip(got[:-1], wanted[:-1], strict=True))
    assert relative_rms(got[-1], wanted[-1]) <= TOLERANCE[FLOAT16]


@pytest.mark.parametrize("mean", [30.0, -1000.0])
def test_a_large_mean_costs_no_digits(mean: float) -> None:
    x, center, map_center = make((3, 24, 9, 13), FLOAT32, mean)
    _, maps, got_mean, var, dx = run(x, center, map_center, True)
    wanted = expect(x, map_center, weights([x, maps, got_mean, var]), True)
    assert relative_rms(maps, wanted[1]) <= 1e-6
    assert relative_rms(got_mean, wanted[2]) <= 1e-7 and relative_rms(var, wanted[3]) <= 2e-6
    assert relative_rms(dx, wanted[4]) <= max(1e-6, 1e-7 * abs(mean))  # x - mean is no better than mean's rounding


@pytest.mark.parametrize("which", range(4), ids=["x", "maps", "mean", "var"])
def test_gradient_of_one_output_alone(which: int) -> None:
    x, center, map_center = make((2, 24, 3, 5), FLOAT32)
    leaf, leaf64 = x.clone().requires_grad_(), x.double().requires_grad_()
    with poisoned():
        got = FeatureMaps.apply(leaf, center, map_center, True)
        seed = torch.randn(got[which].shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        (dx,) = torch.autograd.grad(got[which], leaf, seed)
    wanted = feature_maps_reference(leaf64, has_neighbours=True, map_center=map_center.double())
    (expected,) = torch.autograd.grad(wanted[which], leaf64, seed.double())
    assert relative_rms(dx, expected) <= 1e-6


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize(
    ("shape", "p"), [((2, 24, 14, 14), 16), ((1, 3, 56, 56), 16), ((2, 24, 9, 13), 4), ((2, 8, 16, 32), 16)], ids=str
)
def test_patch_moments_equal_resizing(shape: tuple[int, ...], p: int, dtype: torch.dtype) -> None:
    x, _, map_center = make(shape, dtype)
    leaf, leaf64 = x.clone().requires_grad_(), x.double().requires_grad_()
    maps = FeatureMaps.apply(leaf, None, map_center, needs_neighbours(*shape[2:], p))[1]
    got = patch_moments(maps, shape[0], shape[1], p, map_center)
    wanted = patch_moments_reference(leaf64, p)
    assert all(relative_rms(a, b) <= 1e-6 for a, b in zip(got, wanted, strict=True))
    (dx,) = torch.autograd.grad(torch.cat(got).square().sum(), leaf)
    (expected,) = torch.autograd.grad(torch.cat(wanted).square().sum(), leaf64)
    assert relative_rms(dx, expected) <= TOLERANCE[dtype]


def test_agrees_with_the_cpu() -> None:
    x, center, map_center = make((2, 24, 3, 5), FLOAT32)
    ours = FeatureMaps.apply(x, center, map_center, True)
    closed = feature_maps(x.cpu(), center.cpu(), has_neighbours=True, map_center=map_center.cpu())
    assert all(relative_rms(a, b) <= 1e-6 for a, b in zip(ours, closed, strict=True))


def test_two_runs_agree_bit_for_bit() -> None:
    x, center, map_center = make((7, 64, 5, 7), BFLOAT16)
    first, second = (run(x, center, map_center, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_way_on_is_the_same_memory() -> None:
    x, center, map_center = make((1, 8, 3, 3), FLOAT32)
    assert FeatureMaps.apply(x.requires_grad_(), center, map_center, False)[0].data_ptr() == x.data_ptr()


def test_launch_shape_covers_every_image_pixel_and_channel() -> None:
    for num_images in (1, 7, 100, 1000):
        for side in (1, 2, 7, 14, 56, 112, 224):
            for channels in (1, 3, 24, 64, 116, 512, 2048):
                tiles = pixel_tiles(num_images, channels, side * side)
                assert tiles.block_c * tiles.num_columns >= channels and tiles.block_p * tiles.num_tiles >= side * side
                assert tiles.block_p * tiles.block_c <= 2048
                assert (tiles.num_chunks - 1) * tiles.chunk < num_images <= tiles.num_chunks * tiles.chunk
                programs = tiles.num_chunks * tiles.num_tiles * tiles.num_columns
                assert programs >= min(num_images, 512) and (programs <= 2048 or tiles.num_chunks == 1)
