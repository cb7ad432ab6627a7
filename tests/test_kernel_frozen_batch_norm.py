"""frozen_batch_norm's Triton kernels against float64 autograd of the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_checks import DEVICE, TOLERANCE, poisoned, relative_rms
from torch import Tensor
from torch.nn import functional as F

from fastcondense.kernels.common import channel_moments_gpu, launch
from fastcondense.kernels.common.launch import row_tiles
from fastcondense.kernels.frozen_batch_norm import ACTIVATIONS, Activation, frozen_batch_norm
from fastcondense.kernels.frozen_batch_norm.definition import frozen_batch_norm_reference
from fastcondense.kernels.frozen_batch_norm.gpu import FrozenBatchNorm

SHAPES = [(3, 64, 9, 13), (1, 3, 7, 7), (2, 24, 1, 1), (1, 116, 5, 3), (5, 8, 7, 7), (1, 1, 1, 1)]
BIG_SHAPES = [(4, 64, 56, 56), (2, 512, 14, 14), (3, 24, 112, 112), (2, 3, 224, 224), (2, 116, 28, 28)]
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype, residual: bool, mean: float = 3.0
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """x, residual, scale, shift and a center that is half a standard deviation off."""
    generator = torch.Generator().manual_seed(0)
    layout = {"dtype": dtype, "device": DEVICE, "memory_format": torch.channels_last}
    x = (torch.randn(shape, generator=generator) * 1.5 + mean).to(**layout)
    other = torch.randn(shape, generator=generator).to(**layout) if residual else None
    scale = torch.rand(shape[1], generator=generator) + 0.5
    center = torch.full((shape[1],), mean + 0.75)
    shift = torch.randn(shape[1], generator=generator) - mean * scale
    return x, other, scale.to(DEVICE), shift.to(DEVICE), center.to(DEVICE)


def run(
    x: Tensor,
    residual: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    center: Tensor,
    activation: str,
    output_center: Tensor | None = None,
) -> list[Tensor]:
    """Outputs, then gradients of a sum with random weights, from the kernels."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, residual) if t is not None]
    with poisoned():
        outputs = FrozenBatchNorm.apply(
            leaves[0], leaves[1] if len(leaves) == 2 else None, scale, shift, center, output_center, activation
        )
        return [*outputs, *torch.autograd.grad(outputs, leaves, weights(outputs))]


def weights(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    dy, *dmoments = (torch.randn(output.shape, generator=generator).to(DEVICE) for output in outputs)
    rows = outputs[0].numel() // outputs[0].shape[1]  # so that the moments' share of dx is as large as y's
    dy = dy.to(outputs[0].dtype).contiguous(memory_format=torch.channels_last)
    return [dy, *(gradient * rows for gradient in dmoments)]


def check(shape: tuple[int, ...], dtype: torch.dtype, activation: Activation, residual: bool, output: bool) -> None:
    """Outputs and gradients against the definition in float64; y's moments against those of y as it is stored."""
    x, other, scale, shift, center = inputs(shape, dtype, residual)
    leaves = [t.detach().double().requires_grad_() for t in (x, other) if t is not None]
    outputs = frozen_batch_norm_reference(
        leaves[0], scale.double(), shift.double(), residual=leaves[1] if residual else None, activation=activation
    )
    output_center = outputs[3].detach().float() + 0.3 if output else None
    got = run(x, other, scale, shift, center, activation, output_center)
    num_outputs = 5 if output else 3
    outputs = outputs[:num_outputs]
    seeds = [weight.double() for weight in weights(tuple(got[:num_outputs]))]
    gradients = torch.autograd.grad(outputs, leaves, seeds)
    moments = [outputs[1], outputs[2]]
    if output:
        stored = got[0].double()
        moments += [stored.mean((0, 2, 3)), stored.var((0, 2, 3), correction=0)]
    assert len(got) == num_outputs + len(leaves)
    assert relative_rms(got[0], outputs[0]) <= TOLERANCE[dtype]
    for k, (a, b) in enumerate(zip(got[1:num_outputs], moments, strict=True)):
        # A sum over one row has no variance; its error is measured by the square of x - center.
        assert relative_rms(a, b, floor=0.5) <= TOLERANCE[FLOAT32], k
    for a, b in zip(got[num_outputs:], gradients, strict=True):
        assert relative_rms(a, b) <= TOLERANCE[dtype]
    assert [t.dtype for t in got[:num_outputs]] == [dtype] + [FLOAT32] * (num_outputs - 1)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (got[0], *got[num_outputs:]))


@pytest.mark.parametrize(
    ("dtype", "activation", "residual"), [(FLOAT32, "relu", True), (BFLOAT16, "relu", True), (FLOAT32, "none", False)]
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(
    shape: tuple[int, ...], activation: Activation, residual: bool, dtype: torch.dtype
) -> None:
    check(shape, dtype, activation, residual, False)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("dtype", "residual", "output"),
    [(dtype, *flags) for dtype in (FLOAT32, BFLOAT16) for flags in np.ndindex(2, 2)] + [(FLOAT16, True, True)],
)
def test_every_form_equals_the_definition(
    dtype: torch.dtype, activation: Activation, residual: bool, output: bool
) -> None:
    check((2, 24, 5, 7), dtype, activation, residual, output)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="too slow in Triton's interpreter")
@pytest.mark.parametrize("output", [False, True], ids=["", "output"])
@pytest.mark.parametrize("shape", BIG_SHAPES, ids=str)
def test_large_maps_equal_the_definition(shape: tuple[int, ...], output: bool) -> None:
    for activation in ACTIVATIONS:
        check(shape, FLOAT32, activation, False, output)


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("activation", ["relu", "relu6", "hardswish"])
def test_derivatives_at_the_kinks_are_torchs(activation: Activation, residual: bool) -> None:
    kinks = torch.tensor([0.0, 6.0, -3.0, 3.0, -4.0, 7.0]).repeat(8, 1).reshape(1, 8, 6, 1)
    x = kinks.contiguous(memory_format=torch.channels_last).to(DEVICE).requires_grad_()
    other = torch.zeros_like(x) if residual else None
    one, zero = torch.ones(8, device=DEVICE), torch.zeros(8, device=DEVICE)
    y = FrozenBatchNorm.apply(x, other, one, zero, zero, None, activation)[0]
    (wanted,) = torch.autograd.grad(getattr(F, activation)(x).sum(), x)
    (got,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(got, wanted)


def test_chunks_of_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Big tensors make programs loop; two programs a tensor make small ones do, with a last chunk that is cut short."""
    x, other, scale, shift, center = inputs((5, 116, 9, 13), FLOAT32, True)
    monkeypatch.setattr(launch, "_PROGRAMS", 8)
    monkeypatch.setattr(channel_moments_gpu, "BLOCK_P", 2)
    tiles = row_tiles(5 * 9 * 13, 116)
    assert tiles.num_chunks > 2 and tiles.chunk > 2 * tiles.block_r and 5 * 9 * 13 % tiles.chunk
    got = run(x, other, scale, shift, center, "relu")
    assert other is not None
    leaves = [t.detach().double().requires_grad_() for t in (x, other)]
    outputs = frozen_batch_norm_reference(
        leaves[0], scale.double(), shift.double(), residual=leaves[1], activation="relu"
    )[:3]
    wanted = [*outputs, *torch.autograd.grad(outputs, leaves, [w.double() for w in weights(tuple(got[:3]))])]
    assert all(relative_rms(a, b) <= 1e-6 for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("mean", [30.0, -1000.0])
def test_a_large_mean_costs_no_digits(mean: float) -> None:
    x, _, scale, shift, center = inputs((3, 24, 9, 13), FLOAT32, False, mean)
    _, got_mean, got_var, dx = run(x, None, scale, shift, center, "none")
    leaf = x.double().requires_grad_()
    outputs = frozen_batch_norm_reference(leaf, scale.double(), shift.double())[:3]
    seeds = [weight.double() for weight in weights(outputs)]
    (wanted,) = torch.autograd.grad(outputs, leaf, seeds)
    deviation = outputs[1].detach() - got_mean.double()
    assert deviation.abs().max() <= 1e-7 * abs(mean)
    # x - mean cannot be better than the rounding of mean itself
    assert relative_rms(got_var, outputs[2]) <= 2e-6
    assert relative_rms(dx, wanted) <= max(1e-6, 1e-7 * abs(mean))


@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
@pytest.mark.parametrize("which", range(5), ids=["y", "mean", "var", "y_mean", "y_var"])
def test_gradient_of_one_output_alone(which: int, activation: Activation) -> None:
    x, other, scale, shift, center = inputs((2, 24, 3, 5), FLOAT32, True)
    assert other is not None
    leaves = [t.clone().requires_grad_() for t in (x, other)]
    leaves64 = [t.double().requires_grad_() for t in (x, other)]
    with poisoned():
        got = FrozenBatchNorm.apply(*leaves, scale, shift, center, shift, activation)
        seed = weights(got)[which]
        gradients = torch.autograd.grad(got[which], leaves, seed, allow_unused=True)
    wanted = frozen_batch_norm_reference(
        leaves64[0], scale.double(), shift.double(), residual=leaves64[1], activation=activation
    )
    expected = torch.autograd.grad(wanted[which], leaves64, seed.double(), allow_unused=True)
    assert [a is None for a in gradients] == [b is None for b in expected]
    assert all(relative_rms(a, b) <= 1e-6 for a, b in zip(gradients, expected, strict=True) if a is not None)


def test_agrees_with_the_cpus_kernels() -> None:
    x, other, scale, shift, center = inputs((2, 24, 3, 5), FLOAT32, True)
    assert other is not None
    ours = FrozenBatchNorm.apply(x, other, scale, shift, center, None, "relu")
    closed = frozen_batch_norm(x.cpu(), scale.cpu(), shift.cpu(), center.cpu(), residual=other.cpu(), activation="relu")
    for a, b in zip(ours, closed, strict=True):
        assert relative_rms(a, b) <= 1e-6


@pytest.mark.parametrize("residual", [False, True])
def test_two_runs_agree_bit_for_bit(residual: bool) -> None:
    arguments = inputs((7, 64, 9, 13), BFLOAT16, residual)
    first, second = run(*arguments, "relu", arguments[3]), run(*arguments, "relu", arguments[3])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_is_not_hidden_by_the_activation(activation: Activation) -> None:
    x, _, scale, shift, center = inputs((1, 8, 3, 3), FLOAT32, False)
    x[0, 2, 1, 1] = float("nan")
    outputs = FrozenBatchNorm.apply(x, None, scale, shift, center, shift, activation)
    assert [t.isnan().sum().item() for t in outputs] == [1, 1, 1, 1, 1]


def test_launch_shape_covers_every_row_and_channel() -> None:
    for num_rows in (1, 49, 4096, 100 * 7 * 7, 100 * 112 * 112, 2**31):
        for channels in (1, 3, 24, 64, 116, 512, 2048):
            tiles = row_tiles(num_rows, channels)
            assert tiles.block_c * tiles.num_columns >= channels and tiles.block_r * tiles.num_tiles >= num_rows
            assert tiles.chunk % tiles.block_r == 0 and (tiles.num_chunks - 1) * tiles.chunk < num_rows
            assert num_rows <= tiles.num_chunks * tiles.chunk and tiles.num_chunks * tiles.num_columns <= 1024 + 32
            assert tiles.chunk * channels < 2**31 or num_rows * channels > 2**36
