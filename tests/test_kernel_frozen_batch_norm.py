"""frozen_batch_norm's Triton kernels against float64 autograd of the definition."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, TOLERANCE, poisoned, relative_rms
from torch import Tensor

from fastcondense.kernels import frozen_batch_norm_triton, launch
from fastcondense.kernels.frozen_batch_norm import frozen_batch_norm, frozen_batch_norm_reference
from fastcondense.kernels.frozen_batch_norm_triton import FrozenBatchNorm
from fastcondense.kernels.launch import row_tiles

SHAPES = [(3, 64, 9, 13), (1, 3, 7, 7), (2, 24, 1, 1), (1, 116, 5, 3), (5, 8, 7, 7), (1, 1, 1, 1)]
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


def run(x: Tensor, residual: Tensor | None, scale: Tensor, shift: Tensor, center: Tensor, relu: bool) -> list[Tensor]:
    """Outputs, then gradients of a sum with random weights, from the kernels."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, residual) if t is not None]
    with poisoned():
        outputs = FrozenBatchNorm.apply(leaves[0], leaves[1] if len(leaves) == 2 else None, scale, shift, center, relu)
        return [*outputs, *torch.autograd.grad(outputs, leaves, weights(outputs))]


def weights(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    dy, dmean, dvar = (torch.randn(output.shape, generator=generator).to(DEVICE) for output in outputs)
    rows = outputs[0].numel() // outputs[0].shape[1]  # so that the moments' share of dx is as large as y's
    return [dy.to(outputs[0].dtype).contiguous(memory_format=torch.channels_last), dmean * rows, dvar * rows]


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_equals_the_definition(shape: tuple[int, ...], relu: bool, residual: bool, dtype: torch.dtype) -> None:
    x, other, scale, shift, center = inputs(shape, dtype, residual)
    got = run(x, other, scale, shift, center, relu)
    leaves = [t.detach().double().requires_grad_() for t in (x, other) if t is not None]
    outputs = frozen_batch_norm_reference(
        leaves[0], scale.double(), shift.double(), residual=leaves[1] if residual else None, relu=relu
    )
    seeds = [weight.double() for weight in weights(tuple(got[:3]))]
    # A sum over one row has no variance; its error is measured by the square of x - center.
    wanted = [*outputs, *torch.autograd.grad(outputs, leaves, seeds)]
    for name, a, b in zip(("y", "mean", "var", "dx", "dresidual"), got, wanted, strict=False):
        limit = TOLERANCE[FLOAT32 if name in ("mean", "var") else dtype]
        assert relative_rms(a, b, floor=0.5 if name == "var" else 0.0) <= limit, name
    assert [t.dtype for t in got[:3]] == [dtype, FLOAT32, FLOAT32]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (got[0], *got[3:]))


def test_chunks_of_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Big tensors make programs loop; two programs a tensor make small ones do, with a last chunk that is cut short."""
    x, other, scale, shift, center = inputs((5, 116, 9, 13), FLOAT32, True)
    monkeypatch.setattr(launch, "_PROGRAMS", 8)
    monkeypatch.setattr(frozen_batch_norm_triton, "COMBINE_P", 2)
    tiles = row_tiles(5 * 9 * 13, 116)
    assert tiles.num_chunks > 2 and tiles.chunk > 2 * tiles.block_r and 5 * 9 * 13 % tiles.chunk
    got = run(x, other, scale, shift, center, True)
    assert other is not None
    leaves = [t.detach().double().requires_grad_() for t in (x, other)]
    outputs = frozen_batch_norm_reference(leaves[0], scale.double(), shift.double(), residual=leaves[1], relu=True)
    wanted = [*outputs, *torch.autograd.grad(outputs, leaves, [w.double() for w in weights(tuple(got[:3]))])]
    assert all(relative_rms(a, b) <= 1e-6 for a, b in zip(got, wanted, strict=True))


def test_float16() -> None:
    x, other, scale, shift, center = inputs((2, 24, 3, 3), FLOAT16, True)
    got = run(x, other, scale, shift, center, True)
    y, mean, var = frozen_batch_norm_reference(
        x.double(), scale.double(), shift.double(), residual=other.double() if other is not None else None, relu=True
    )
    assert relative_rms(got[0], y) <= TOLERANCE[FLOAT16]
    assert relative_rms(got[1], mean) <= 1e-6 and relative_rms(got[2], var) <= 1e-6


@pytest.mark.parametrize("mean", [30.0, -1000.0])
def test_a_large_mean_costs_no_digits(mean: float) -> None:
    x, _, scale, shift, center = inputs((3, 24, 9, 13), FLOAT32, False, mean)
    _, got_mean, got_var, dx = run(x, None, scale, shift, center, False)
    leaf = x.double().requires_grad_()
    outputs = frozen_batch_norm_reference(leaf, scale.double(), shift.double())
    seeds = [weight.double() for weight in weights(outputs)]
    (wanted,) = torch.autograd.grad(outputs, leaf, seeds)
    deviation = outputs[1].detach() - got_mean.double()
    assert deviation.abs().max() <= 1e-7 * abs(mean)
    # x - mean cannot be better than the rounding of mean itself
    assert relative_rms(got_var, outputs[2]) <= 2e-6
    assert relative_rms(dx, wanted) <= max(1e-6, 1e-7 * abs(mean))


@pytest.mark.parametrize("which", [0, 1, 2], ids=["y", "mean", "var"])
def test_gradient_of_one_output_alone(which: int) -> None:
    x, other, scale, shift, center = inputs((2, 24, 3, 5), FLOAT32, True)
    assert other is not None
    leaf, leaf64 = x.clone().requires_grad_(), x.double().requires_grad_()
    with poisoned():
        got = FrozenBatchNorm.apply(leaf, other, scale, shift, center, True)
        seed = weights(got)[which]
        (dx,) = torch.autograd.grad(got[which], leaf, seed)
    wanted = frozen_batch_norm_reference(leaf64, scale.double(), shift.double(), residual=other.double(), relu=True)
    (expected,) = torch.autograd.grad(wanted[which], leaf64, seed.double())
    assert relative_rms(dx, expected) <= 1e-6


def test_agrees_with_the_closed_form() -> None:
    x, other, scale, shift, center = inputs((2, 24, 3, 5), FLOAT32, True)
    ours = FrozenBatchNorm.apply(x, other, scale, shift, center, True)
    closed = frozen_batch_norm(x.cpu(), scale.cpu(), shift.cpu(), center.cpu(), residual=other.cpu(), relu=True)
    for a, b in zip(ours, closed, strict=True):
        assert relative_rms(a, b) <= 1e-6


@pytest.mark.parametrize("residual", [False, True])
def test_two_runs_agree_bit_for_bit(residual: bool) -> None:
    arguments = inputs((7, 64, 9, 13), BFLOAT16, residual)
    first, second = run(*arguments, True), run(*arguments, True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nan_is_not_hidden_by_the_relu() -> None:
    x, _, scale, shift, center = inputs((1, 8, 3, 3), FLOAT32, False)
    x[0, 2, 1, 1] = float("nan")
    y, mean, var = FrozenBatchNorm.apply(x, None, scale, shift, center, True)
    assert [t.isnan().sum().item() for t in (y, mean, var)] == [1, 1, 1]


def test_refuses_another_layout() -> None:
    x, _, scale, shift, center = inputs((2, 24, 3, 5), FLOAT32, False)
    with pytest.raises(ValueError, match="channels_last"):
        frozen_batch_norm(x.contiguous(), scale, shift, center)
    with pytest.raises(ValueError, match="float32 scale"):
        FrozenBatchNorm.apply(x, None, scale.double(), shift, center, False)


def test_launch_shape_covers_every_row_and_channel() -> None:
    for num_rows in (1, 49, 4096, 100 * 7 * 7, 100 * 112 * 112, 2**31):
        for channels in (1, 3, 24, 64, 116, 512, 2048):
            tiles = row_tiles(num_rows, channels)
            assert tiles.block_c * tiles.num_columns >= channels and tiles.block_r * tiles.num_tiles >= num_rows
            assert tiles.chunk % tiles.block_r == 0 and (tiles.num_chunks - 1) * tiles.chunk < num_rows
            assert num_rows <= tiles.num_chunks * tiles.chunk and tiles.num_chunks * tiles.num_columns <= 1024 + 32
            assert tiles.chunk * channels < 2**31 or num_rows * channels > 2**36
