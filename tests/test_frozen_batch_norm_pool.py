"""frozen_batch_norm_pool on the CPU against autograd through its definition in float64, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from kernel_checks import ROUNDED, poisoned, relative_rms
from torch import Tensor

from fastcondense.kernels.frozen_batch_norm.definition import channel_moments
from fastcondense.kernels.frozen_batch_norm_pool import cpu, frozen_batch_norm_pool
from fastcondense.kernels.frozen_batch_norm_pool.definition import frozen_batch_norm_pool_reference

SHAPES = [
    (1, 3, 1, 1),
    (2, 24, 2, 2),
    (3, 64, 7, 7),
    (2, 116, 9, 13),
    (2, 8, 1, 6),
    (5, 24, 14, 14),
    (2, 64, 28, 28),
    (3, 16, 56, 56),
    (1, 4, 112, 111),
    (1, 3, 224, 224),
]
NAMES = ("y", "mean", "var", "y_mean", "y_var")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def inputs(shape: tuple[int, ...], mean: float = 3.0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, scale, shift, center and output_center; the centers are off by half a standard deviation or so."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * 1.5 + mean).to(dtype).contiguous(memory_format=torch.channels_last)
    scale = torch.rand(shape[1], generator=generator) + 0.5
    scale[1::2] *= -1
    shift = torch.randn(shape[1], generator=generator) - mean * scale
    center = torch.full((shape[1],), mean + 0.75)
    return [x, scale, shift, center, torch.ones(shape[1])]


def weights(outputs: tuple[Tensor, ...], size: int) -> list[Tensor]:
    """Gradients of the outputs, such that the moments' share of dx is as large as y's."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(output.shape, generator=generator) for output in outputs]
    return [drawn[0].to(outputs[0].dtype), *(weight * (size / weight.numel()) for weight in drawn[1:])]


def definition(x: Tensor, scale: Tensor, shift: Tensor, used: slice = slice(None)) -> list[Tensor]:
    """Outputs and the gradient of x in float64, by autograd."""
    leaf = x.detach().double().requires_grad_()
    outputs = frozen_batch_norm_pool_reference(leaf, scale.double(), shift.double())[used]
    seeds = [weight.double() for weight in weights(outputs, x.numel())]
    return [*outputs, *torch.autograd.grad(outputs, leaf, seeds)]


def run(x: Tensor, scale: Tensor, shift: Tensor, center: Tensor, output_center: Tensor | None) -> list[Tensor]:
    """Outputs and the gradient of x from the operator."""
    leaf = x.detach().clone().requires_grad_()
    with poisoned():
        outputs = frozen_batch_norm_pool(leaf, scale, shift, center, output_center=output_center)
        return [*outputs, *torch.autograd.grad(outputs, leaf, weights(outputs, x.numel()))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(shape: tuple[int, ...]) -> None:
    x, scale, shift, center, output_center = inputs(shape)
    got = run(x, scale, shift, center, output_center)
    for name, a, b in zip((*NAMES, "dx"), got, definition(x, scale, shift), strict=True):
        # A moment of few values may be 0: its error is measured by the deviations from the centers.
        assert relative_rms(a, b, floor=0.5 if name in NAMES[1:] else 0.0) <= 1e-6, name
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (got[0], got[-1]))


def test_without_output_center_there_are_three_outputs() -> None:
    x, scale, shift, center, _ = inputs((2, 24, 9, 13))
    got = run(x, scale, shift, center, None)
    wanted = definition(x, scale, shift, slice(3))
    assert len(got) == 4 and all(relative_rms(a, b) <= 1e-6 for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    x, *vectors = inputs((2, 24, 9, 13), dtype=dtype)
    got = run(x, *vectors)
    limits = [ROUNDED[torch.float32 if name in NAMES[1:] else dtype] for name in (*NAMES, "dx")]
    leaf = x.detach().double().requires_grad_()
    y, mean, var, *_ = frozen_batch_norm_pool_reference(leaf, *(vector.double() for vector in vectors[:2]))
    stored = y + (got[0].detach().double() - y).detach()  # whose moments are meant, not those before y is rounded
    outputs = (stored, mean, var, *channel_moments(stored))
    wanted = [*outputs, *torch.autograd.grad(outputs, leaf, [w.double() for w in weights(got[:5], x.numel())])]
    for name, a, b, limit in zip((*NAMES, "dx"), got, wanted, limits, strict=True):
        assert relative_rms(a, b) <= limit, name
    assert [t.dtype for t in got] == [dtype, *4 * [torch.float32], dtype]


def test_float64_passes_gradcheck() -> None:
    x, *vectors = (t.double() for t in inputs((2, 3, 4, 5)))

    def call(x: Tensor) -> tuple[Tensor, ...]:
        x = x.contiguous(memory_format=torch.channels_last)
        return frozen_batch_norm_pool(x, *vectors[:3], output_center=vectors[3])

    assert torch.autograd.gradcheck(call, x.requires_grad_())


@pytest.mark.parametrize("mean", [30.0, -1000.0])
def test_a_large_mean_costs_no_digits(mean: float) -> None:
    x, *vectors = inputs((3, 24, 9, 13), mean)
    got, wanted = run(x, *vectors), definition(x, *vectors[:2])
    # x * scale + shift and x - mean cannot be better than the rounding of shift and of mean
    assert relative_rms(got[1], wanted[1]) <= 1e-7 and relative_rms(got[2], wanted[2]) <= 2e-6
    assert all(relative_rms(a, b) <= max(1e-6, 2e-7 * abs(mean)) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("used", range(5), ids=NAMES)
def test_gradient_of_one_output_alone(used: int) -> None:
    x, scale, shift, center, output_center = inputs((2, 24, 7, 6))
    leaf, leaf64 = x.clone().requires_grad_(), x.double().requires_grad_()
    with poisoned():
        output = frozen_batch_norm_pool(leaf, scale, shift, center, output_center=output_center)[used]
        seed = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        (dx,) = torch.autograd.grad(output, leaf, seed)
    wanted = frozen_batch_norm_pool_reference(leaf64, scale.double(), shift.double())[used]
    assert relative_rms(dx, *torch.autograd.grad(wanted, leaf64, seed.double())) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_first_of_equal_maxima_gets_the_gradient(dtype: torch.dtype) -> None:
    x = torch.randint(-1, 3, (2, 24, 9, 10), generator=torch.Generator().manual_seed(0)).to(dtype)
    leaf = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    ones, zeros = torch.ones(24, dtype=dtype), torch.zeros(24, dtype=dtype)
    y = frozen_batch_norm_pool(leaf, ones, zeros, zeros)[0]
    wanted = frozen_batch_norm_pool_reference(leaf, ones, zeros)[0]
    seed = torch.randint(1, 9, y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)  # sums are exact
    assert torch.equal(y, wanted)
    assert torch.equal(*(torch.autograd.grad(t, leaf, seed)[0] for t in (y, wanted)))


def test_nan_is_a_maximum() -> None:
    x, scale, shift, center, _ = inputs((1, 8, 7, 7))
    for c, h, w in ((0, 0, 0), (1, 3, 3), (2, 3, 4), (2, 4, 3), (3, 6, 6), (3, 5, 5)):
        x[0, c, h, w] = float("nan")
    leaf = x.requires_grad_()
    y, mean, var = frozen_batch_norm_pool(leaf, scale, shift, center)
    wanted = frozen_batch_norm_pool_reference(leaf, scale, shift)[0]
    torch.testing.assert_close(y, wanted, equal_nan=True)
    assert [t.isnan().sum().item() for t in (mean, var)] == [4, 4]
    seed = torch.rand(y.shape, generator=torch.Generator().manual_seed(1))
    dx, expected = (torch.autograd.grad(t, leaf, seed)[0] for t in (y, wanted))
    torch.testing.assert_close(dx, expected)


@pytest.mark.parametrize("shape", [(7, 24, 14, 14), (3, 3, 9, 13)], ids=str)
def test_threads_and_runs_give_the_same_bits(shape: tuple[int, ...]) -> None:
    arguments = inputs(shape)
    run(*arguments)
    found = []
    for count in (1, 2, 2):
        torch.set_num_threads(count)
        found.append(run(*arguments))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_float32_and_bfloat16_take_the_numba_kernels() -> None:
    x, scale, shift, center, _ = inputs((1, 3, 4, 4))
    function = cpu.FrozenBatchNormPool
    with mock.patch.object(function, "apply", wraps=function.apply) as kernel:
        frozen_batch_norm_pool(x.half(), scale, shift, center)
        assert not kernel.called
        for count, dtype in enumerate((torch.float32, torch.bfloat16), 1):
            frozen_batch_norm_pool(x.to(dtype), scale, shift, center)
            assert kernel.call_count == count


def test_wrong_input_is_refused() -> None:
    x, scale, shift, center, _ = inputs((2, 4, 5, 6))
    with pytest.raises(ValueError, match="channels_last"):
        frozen_batch_norm_pool(x.contiguous(), scale, shift, center)
    with pytest.raises(ValueError, match="not empty"):
        frozen_batch_norm_pool(x[:0], scale, shift, center)
    with pytest.raises(ValueError, match="scale of shape"):
        frozen_batch_norm_pool(x, scale[:3], shift, center)
    with pytest.raises(ValueError, match=r"float32 center .* got torch.float64"):
        frozen_batch_norm_pool(x, scale, shift, center.double())
    with pytest.raises(ValueError, match=r"contiguous .* output_center"):
        frozen_batch_norm_pool(x, scale, shift, center, output_center=torch.ones(8)[::2])
