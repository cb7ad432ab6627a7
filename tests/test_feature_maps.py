"""feature_maps on the CPU against float64 autograd of its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_checks import ROUNDED, poisoned, relative_rms
from torch import Tensor

from fastcondense.kernels.feature_maps import feature_maps
from fastcondense.kernels.feature_maps.definition import feature_maps_reference

SHAPES = [(3, 64, 9, 13), (1, 3, 7, 7), (40, 3, 33, 16), (2, 24, 1, 1), (1, 116, 5, 3), (3, 512, 2, 7), (1, 1, 1, 1)]


def make(shape: tuple[int, ...], dtype: torch.dtype, mean: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """x, a center a channel and one for all, each half a standard deviation off."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * 1.5 + mean).to(dtype).contiguous(memory_format=torch.channels_last)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    return x, torch.full((shape[1],), mean + 0.75, dtype=compute), torch.tensor(mean - 0.75, dtype=compute)


def weights(outputs: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = outputs[0].numel() // outputs[0].shape[1]  # so that the moments' share of dx is as large as x's
    scales = (1, 1, rows, rows)
    return [
        (torch.randn(output.shape, generator=generator, dtype=torch.float64) * scale).to(output.dtype)
        for output, scale in zip(outputs, scales, strict=False)
    ]


def run(x: Tensor, center: Tensor, map_center: Tensor, *, has_neighbours: bool, has_channels: bool) -> list[Tensor]:
    """Outputs without None, then the gradient of a sum with random weights."""
    leaf = x.detach().clone().requires_grad_()
    with poisoned():
        outputs = feature_maps(
            leaf, center, has_neighbours=has_neighbours, has_channels=has_channels, map_center=map_center
        )
        given = [output for output in outputs if output is not None]
        return [*given, *torch.autograd.grad(given, leaf, weights(given))]


def expect(
    x: Tensor, map_center: Tensor, seeds: list[Tensor], has_neighbours: bool, has_channels: bool
) -> list[Tensor]:
    leaf = x.detach().double().requires_grad_()
    outputs = feature_maps_reference(
        leaf, has_neighbours=has_neighbours, has_channels=has_channels, map_center=map_center.double()
    )
    given = [output for output in outputs if output is not None]
    return [*given, *torch.autograd.grad(given, leaf, [seed.double() for seed in seeds])]


@pytest.mark.parametrize(
    ("dtype", "has_neighbours", "has_channels"),
    [*((torch.float32, *flags) for flags in np.ndindex(2, 2)), (torch.float64, 1, 1), (torch.bfloat16, 1, 1)],
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(
    shape: tuple[int, ...], has_neighbours: bool, has_channels: bool, dtype: torch.dtype
) -> None:
    x, center, map_center = make(shape, dtype)
    got = run(x, center, map_center, has_neighbours=has_neighbours, has_channels=has_channels)
    wanted = expect(x, map_center, weights(got[:-1]), has_neighbours, has_channels)
    assert len(got) == (5 if has_channels else 3) and got[1].shape == (6 if has_neighbours else 2, *shape[2:])
    names = ["x", "maps", "mean", "var", "dx"] if has_channels else ["x", "maps", "dx"]
    for name, a, b in zip(names, got, wanted, strict=True):
        limit = ROUNDED.get(dtype if name == "dx" else torch.float32, 1e-12)
        assert relative_rms(a, b, floor=0.5 if name == "var" else 0.0) <= limit, name
    assert got[0].dtype == got[-1].dtype == dtype and got[1].dtype == center.dtype


def test_a_feature_of_many_tasks() -> None:
    x, center, map_center = make((6, 64, 56, 56), torch.float32)
    got = run(x, center, map_center, has_neighbours=True, has_channels=True)
    wanted = expect(x, map_center, weights(got[:-1]), True, True)
    assert all(relative_rms(a, b) <= 1e-6 for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("mean", [30.0, -1000.0])
def test_a_large_mean_costs_no_digits(mean: float) -> None:
    x, center, map_center = make((3, 24, 9, 13), torch.float32, mean)
    _, maps, got_mean, var, dx = run(x, center, map_center, has_neighbours=True, has_channels=True)
    wanted = expect(x, map_center, weights([x, maps, got_mean, var]), True, True)
    assert relative_rms(maps, wanted[1]) <= 1e-6
    assert relative_rms(got_mean, wanted[2]) <= 1e-7 and relative_rms(var, wanted[3]) <= 2e-6
    assert relative_rms(dx, wanted[4]) <= max(1e-6, 1e-7 * abs(mean))  # x - mean is no better than mean's rounding


@pytest.mark.parametrize("which", range(4), ids=["x", "maps", "mean", "var"])
def test_gradient_of_one_output_alone(which: int) -> None:
    x, center, map_center = make((2, 24, 3, 5), torch.float32)
    leaf, leaf64 = x.clone().requires_grad_(), x.double().requires_grad_()
    with poisoned():
        got = feature_maps(leaf, center, has_neighbours=True, map_center=map_center)
        seed = torch.randn(got[which].shape, generator=torch.Generator().manual_seed(1))
        (dx,) = torch.autograd.grad(got[which], leaf, seed)
    wanted = feature_maps_reference(leaf64, has_neighbours=True, map_center=map_center.double())
    (expected,) = torch.autograd.grad(wanted[which], leaf64, seed.double())
    assert relative_rms(dx, expected) <= 1e-6


def test_the_way_on_is_the_same_memory() -> None:
    x, center, _ = make((2, 24, 3, 5), torch.float32)
    assert feature_maps(x, center, has_neighbours=True)[0].data_ptr() == x.data_ptr()
    x.requires_grad_()
    on = feature_maps(x, center, has_neighbours=False)[0]
    assert on.data_ptr() == x.data_ptr() and on.grad_fn is not None


@pytest.mark.parametrize("has_neighbours", [False, True])
@pytest.mark.parametrize("shape", [(5, 64, 30, 14), (9, 3, 32, 32)], ids=str)
def test_neither_runs_nor_threads_move_a_bit(shape: tuple[int, ...], has_neighbours: bool) -> None:
    arguments = make(shape, torch.float32)
    runs = []
    for num_threads in (1, 2, 2):
        torch.set_num_threads(num_threads)
        try:
            runs.append(run(*arguments, has_neighbours=has_neighbours, has_channels=True))
        finally:
            torch.set_num_threads(1)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*runs, strict=True))


def test_nan_shows() -> None:
    x, center, _ = make((1, 8, 3, 3), torch.float32)
    x[0, 2, 1, 1] = float("nan")
    _, maps, mean, var = feature_maps(x, center, has_neighbours=True)
    assert maps.isnan().sum((1, 2)).tolist() == [1, 1, 2, 2, 2, 2]
    assert mean is not None and var is not None and [mean.isnan().sum(), var.isnan().sum()] == [1, 1]


def test_wrong_input_is_refused() -> None:
    x, center, map_center = make((2, 24, 3, 5), torch.float32)
    with pytest.raises(ValueError, match="channels_last"):
        feature_maps(x.contiguous(), center, has_neighbours=True)
    with pytest.raises(ValueError, match="channels_last"):
        feature_maps(x[:0], center, has_neighbours=True)
    with pytest.raises(ValueError, match="needs center"):
        feature_maps(x, None, has_neighbours=True)
    with pytest.raises(ValueError, match="needs center"):
        feature_maps(x, center[:3], has_neighbours=True)
    with pytest.raises(ValueError, match="needs map_center"):
        feature_maps(x, None, has_neighbours=True, has_channels=False, map_center=map_center.double())
