"""frozen_batch_norm_pool's Triton kernels against float64 autograd of the definition."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, TOLERANCE, poisoned, relative_rms
from torch import Tensor

from fastcondense.kernels.frozen_batch_norm.definition import channel_moments
from fastcondense.kernels.frozen_batch_norm_pool import frozen_batch_norm_pool, gpu
from fastcondense.kernels.frozen_batch_norm_pool.definition import frozen_batch_norm_pool_reference
from fastcondense.kernels.frozen_batch_norm_pool.gpu import FrozenBatchNormPool, pool_tiles

SHAPES = [(2, 64, 9, 13), (1, 3, 7, 7), (3, 24, 1, 1), (2, 116, 2, 2), (1, 8, 14, 14), (1, 1, 5, 28), (1, 4, 56, 55)]
NAMES = ("y", "mean", "var", "y_mean", "y_var", "dx")
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


def inputs(shape: tuple[int, ...], dtype: torch.dtype = FLOAT32, mean: float = 3.0) -> list[Tensor]:
    """x, scale, shift, center and output_center; the centers are off by half a standard deviation or so."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * 1.5 + mean).to(dtype).contiguous(memory_format=torch.channels_last)
    scale = torch.rand(shape[1], generator=generator) + 0.5
    scale[1::2] *= -1
    shift = torch.randn(shape[1], generator=generator) - mean * scale
    center = torch.full((shape[1],), mean + 0.75)
    return [t.to(DEVICE) for t in (x, scale, shift, center, torch.ones(shape[1]))]


def weights(outputs: tuple[Tensor, ...], size: int) -> list[Tensor]:
    """Gradients of the outputs, such that the moments' share of dx is as large as y's."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(output.shape, generator=generator).to(DEVICE) for output in outputs]
    return [drawn[0].to(outputs[0].dtype), *(weight * (size / weight.numel()) for weight in drawn[1:])]


def run(x: Tensor, *vectors: Tensor | None) -> list[Tensor]:
    """Outputs and the gradient of x from the kernels."""
    leaf = x.detach().clone().requires_grad_()
    with poisoned():
        outputs = FrozenBatchNormPool.apply(leaf, *vectors)
        return [*outputs, *torch.autograd.grad(outputs, leaf, weights(outputs, x.numel()))]


def definition(x: Tensor, scale: Tensor, shift: Tensor, used: slice = slice(None)) -> list[Tensor]:
    """Outputs and the gradient of x in float64, by autograd."""
    leaf = x.detach().double().requires_grad_()
    outputs = frozen_batch_norm_pool_reference(leaf, scale.double(), shift.double())[used]
    seeds = [weight.double() for weight in weights(outputs, x.numel())]
    return [*outputs, *torch.autograd.grad(outputs, leaf, seeds)]


def definition_of_stored(x: Tensor, scale: Tensor, shift: Tensor, y: Tensor) -> list[Tensor]:
    """The same, but the moments of y and their gradient are those of y as it is stored, not before it is rounded."""
    leaf = x.detach().double().requires_grad_()
    exact, mean, var, *_ = frozen_batch_norm_pool_reference(leaf, scale.double(), shift.double())
    rounded = exact + (y.detach().double() - exact).detach()
    outputs = (rounded, mean, var, *channel_moments(rounded))
    seeds = [weight.double() for weight in weights((y, *outputs[1:]), x.numel())]
    return [exact, *outputs[1:], *torch.autograd.grad(outputs, leaf, seeds)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_equals_the_definition(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, *vectors = inputs(shape, dtype)
    got = run(x, *vectors)
    for name, a, b in zip(NAMES, got, definition_of_stored(x, *vectors[:2], got[0]), strict=True):
        is_moment = name not in ("y", "dx")
        # A moment of few values may be 0: its error is measured by the deviations from the centers.
        limit = TOLERANCE[FLOAT32 if is_moment else dtype]
        assert relative_rms(a, b, floor=0.5 if is_moment else 0.0) <= limit, name
    assert [t.dtype for t in got] == [dtype, *4 * [FLOAT32], dtype]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (got[0], got[-1]))


@pytest.mark.parametrize("programs", [1, 3])
def test_programs_that_take_several_rows(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Big tensors make programs loop; few programs a tensor make small ones do, with a last chunk that is cut short."""
    monkeypatch.setattr(gpu, "_PROGRAMS", programs)
    x, *vectors = inputs((2, 24, 13, 9))
    tiles = pool_tiles(2, 24, 7, 5)
    assert tiles.chunk == {1: 7, 3: 3}[programs] and tiles.num_chunks == programs
    got = run(x, *vectors)
    assert all(relative_rms(a, b) <= 1e-6 for a, b in zip(got, definition(x, *vectors[:2]), strict=True))


def test_without_output_center_there_are_three_outputs() -> None:
    x, *vectors = inputs((2, 24, 9, 6))
    got = run(x, *vectors[:3], None)
    wanted = definition(x, *vectors[:2], slice(3))
    assert len(got) == 4 and all(relative_rms(a, b) <= 1e-6 for a, b in zip(got, wanted, strict=True))


def test_float16() -> None:
    x, *vectors = inputs((2, 24, 3, 5), FLOAT16)
    got = run(x, *vectors)
    wanted = definition_of_stored(x, *vectors[:2], got[0])
    assert relative_rms(got[0], wanted[0]) <= TOLERANCE[FLOAT16]
    assert relative_rms(got[-1], wanted[-1]) <= TOLERANCE[FLOAT16]
    assert all(relative_rms(a, b) <= 1e-6 for a, b in zip(got[1:-1], wanted[1:-1], strict=True))


@pytest.mark.parametrize("mean", [30.0, -1000.0])
def test_a_large_mean_costs_no_digits(mean: float) -> None:
    x, *vectors = inputs((2, 24, 9, 13), mean=mean)
    got, wanted = run(x, *vectors), definition(x, *vectors[:2])
    # x * scale + shift and x - mean cannot be better than the rounding of shift and of mean
    assert relative_rms(got[1], wanted[1]) <= 1e-7 and relative_rms(got[2], wanted[2]) <= 2e-6
    assert all(relative_rms(a, b) <= max(1e-6, 2e-7 * abs(mean)) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("used", range(5), ids=NAMES[:5])
def test_gradient_of_one_output_alone(used: int) -> None:
    x, scale, shift, center, output_center = inputs((2, 24, 5, 4))
    leaf, leaf64 = x.clone().requires_grad_(), x.double().requires_grad_()
    with poisoned():
        output = FrozenBatchNormPool.apply(leaf, scale, shift, center, output_center)[used]
        seed = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        (dx,) = torch.autograd.grad(output, leaf, seed)
    wanted = frozen_batch_norm_pool_reference(leaf64, scale.double(), shift.double())[used]
    assert relative_rms(dx, *torch.autograd.grad(wanted, leaf64, seed.double())) <= 1e-6


def test_the_first_of_equal_maxima_gets_the_gradient() -> None:
    x = torch.randint(-1, 3, (2, 24, 9, 10), generator=torch.Generator().manual_seed(0)).float().to(DEVICE)
    leaf = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    ones, zeros = torch.ones(24, device=DEVICE), torch.zeros(24, device=DEVICE)
    y = FrozenBatchNormPool.apply(leaf, ones, zeros, zeros, None)[0]
    wanted = frozen_batch_norm_pool_reference(leaf.cpu(), ones.cpu(), zeros.cpu())[0].to(DEVICE)
    seed = torch.randint(1, 9, y.shape, generator=torch.Generator().manual_seed(1)).float().to(DEVICE)  # exact sums
    assert torch.equal(y, wanted)
    assert torch.equal(*(torch.autograd.grad(t, leaf, seed)[0] for t in (y, wanted)))


def test_nan_is_a_maximum() -> None:
    x, scale, shift, center, _ = inputs((1, 8, 7, 7))
    for c, h, w in ((0, 0, 0), (1, 3, 3), (2, 3, 4), (2, 4, 3), (3, 6, 6), (3, 5, 5)):
        x[0, c, h, w] = float("nan")
    leaf = x.requires_grad_()
    y, mean, var = FrozenBatchNormPool.apply(leaf, scale, shift, center, None)
    wanted = frozen_batch_norm_pool_reference(leaf.cpu(), scale.cpu(), shift.cpu())[0].to(DEVICE)
    torch.testing.assert_close(y, wanted, equal_nan=True)
    assert [t.isnan().sum().item() for t in (mean, var)] == [4, 4]
    seed = torch.rand(y.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    torch.testing.assert_close(*(torch.autograd.grad(t, leaf, seed)[0] for t in (y, wanted)))


def test_agrees_with_the_cpu() -> None:
    x, *vectors = inputs((2, 24, 9, 6))
    ours = FrozenBatchNormPool.apply(x, *vectors)
    cpu = frozen_batch_norm_pool(x.cpu(), *(t.cpu() for t in vectors[:3]), output_center=vectors[3].cpu())
    assert all(relative_rms(a, b) <= 1e-6 for a, b in zip(ours, cpu, strict=True))


def test_two_runs_agree_bit_for_bit() -> None:
    arguments = inputs((3, 64, 9, 13), BFLOAT16)
    assert all(torch.equal(a, b) for a, b in zip(run(*arguments), run(*arguments), strict=True))


def test_launch_shape_covers_every_output() -> None:
    for num_images, height, width in ((1, 1, 1), (100, 56, 56), (7, 5, 7), (1000, 112, 112), (1, 112, 3)):
        for channels in (1, 3, 24, 64, 116, 512):
            tiles = pool_tiles(num_images, channels, height, width)
            assert tiles.block_c * tiles.num_columns >= channels and tiles.block_p * tiles.block_c == 1024
            assert tiles.block_p * tiles.num_strips >= num_images * width
            assert tiles.block_p * tiles.num_tiles >= num_images * height * width
            assert (tiles.num_chunks - 1) * tiles.chunk < height <= tiles.num_chunks * tiles.chunk
            assert tiles.num_chunks == 1 or tiles.num_chunks * tiles.num_strips * tiles.num_columns <= 2048 * 1.5
