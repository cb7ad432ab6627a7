"""frozen_batch_norm on the CPU against autograd through its definition in float64, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_checks import ROUNDED, poisoned, relative_rms
from torch import Tensor
from torch.nn import functional as F

from fastcondense.kernels.frozen_batch_norm import ACTIVATIONS, frozen_batch_norm
from fastcondense.kernels.frozen_batch_norm.definition import frozen_batch_norm_reference

FLOAT32 = torch.float32
SHAPES = [
    (2, 3, 9, 13),
    (1, 24, 7, 7),
    (3, 116, 1, 1),
    (4, 64, 14, 14),
    (1, 512, 7, 7),
    (2, 24, 28, 28),
    (1, 64, 56, 56),
    (2, 8, 112, 112),
    (1, 3, 224, 224),
    (1, 1, 1, 1),
    (2, 700, 1, 3),
]


def make(
    shape: tuple[int, ...], mean: float = 0.0, dtype: torch.dtype = FLOAT32
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """x, residual, and the vectors: centers are some tenths of a deviation off, and shift removes the mean."""
    generator = torch.Generator().manual_seed(1)
    layout = {"dtype": dtype, "memory_format": torch.channels_last}
    x = (torch.randn(shape, generator=generator) + mean).to(**layout)
    residual = torch.randn(shape, generator=generator).to(**layout)
    scale, shift = torch.rand(shape[1], generator=generator) + 0.5, torch.randn(shape[1], generator=generator)
    center = torch.full((shape[1],), mean + 0.3)
    return x, residual, {"scale": scale, "shift": shift - scale * mean, "center": center}


def run(function, leaves: list[Tensor], seeds: list[Tensor] | None, *vectors: Tensor, **settings) -> list[Tensor]:
    """Outputs, then gradients of their sum with `seeds` as weights."""
    leaves = [leaf.detach().clone(memory_format=torch.preserve_format).requires_grad_() for leaf in leaves]
    outputs = function(leaves[0], *vectors, residual=leaves[1] if len(leaves) == 2 else None, **settings)
    seeds = weights(outputs) if seeds is None else seeds
    return [*outputs, *torch.autograd.grad(outputs[: len(seeds)], leaves, seeds)]


def weights(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Random, and of the moments such that their share of dx is as large as y's; of y's dtype and the moments'."""
    generator = torch.Generator().manual_seed(2)
    rows = outputs[0].numel() // outputs[0].shape[1]
    made = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in outputs]
    return [made[0].contiguous(memory_format=torch.channels_last), *(seed * rows for seed in made[1:])]


def away_from_kinks(z: Tensor, seed: Tensor, activation: str) -> Tensor:
    """`seed`, but 0 where z's rounding decides on which side of a kink it falls."""
    for kink in {"relu": (0,), "relu6": (0, 6), "hardswish": (-3, 3)}.get(activation, ()):
        seed = torch.where((z - kink).abs() < 1e-3, 0, seed)
    return seed


FORMS = [(activation, *flags) for activation in ACTIVATIONS for flags in np.ndindex(2, 2)]
DTYPES = (FLOAT32, torch.bfloat16, torch.float16, torch.float64)
CASES = [  # every form of every type, and every shape in the simplest and in the largest form
    *((dtype, SHAPES[0], *form) for dtype in DTYPES for form in FORMS),
    *((FLOAT32, SHAPES[2], *form) for form in FORMS),
    *((dtype, shape, "silu", 1, 1) for dtype in DTYPES for shape in SHAPES[1 : 3 if dtype != FLOAT32 else None]),
    *((FLOAT32, shape, "relu", 0, 0) for shape in SHAPES[1:]),
]


@pytest.mark.parametrize(("dtype", "shape", "activation", "has_residual", "has_output"), CASES, ids=str)
def test_forward_and_backward_equal_float64_autograd(dtype, shape, activation, has_residual, has_output):
    x, residual, vectors = make(shape, dtype=dtype)
    leaves = [x, residual][: 1 + has_residual]
    exact = [leaf.double() for leaf in leaves]
    double = [vector.double() for vector in vectors.values()]
    computed = double if dtype == torch.float64 else list(vectors.values())
    z = frozen_batch_norm_reference(exact[0], *double[:2], residual=exact[1] if has_residual else None)[0]
    y = z if activation == "none" else getattr(F, activation)(z)
    center = (y.mean((0, 2, 3)) + 0.2).to(computed[0].dtype) if has_output else None
    seeds = weights((x, *(computed[0] for _ in range(4 if has_output else 2))))
    seeds[0] = away_from_kinks(z, seeds[0], activation)
    with poisoned():
        got = run(frozen_batch_norm, leaves, seeds, *computed, activation=activation, output_center=center)
    wanted = run(frozen_batch_norm_reference, exact, [s.double() for s in seeds], *double[:2], activation=activation)
    if not has_output:
        del wanted[3:5]
    elif dtype in ROUNDED:  # the moments of y are those of y as it is stored
        wanted[3:5] = got[0].double().mean((0, 2, 3)), got[0].double().var((0, 2, 3), correction=0)
    for k, (one, other) in enumerate(zip(got, wanted, strict=True)):
        is_moment = 0 < k < len(seeds)
        limit = ROUNDED.get(FLOAT32 if is_moment else dtype, 1e-12)
        # A sum over one row has no variance; its error is measured by the square of x - center.
        assert relative_rms(one, other, floor=0.5 if is_moment else 0.0) <= limit, k
        assert one.dtype == (computed[0].dtype if is_moment else dtype)
        assert is_moment or one.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mean", [100.0, -1000.0])
@pytest.mark.parametrize("shape", [(2, 24, 28, 28), (8, 3, 112, 112)], ids=str)
def test_a_large_mean_costs_no_digits(shape, mean):
    x, _, vectors = make(shape, mean)
    _, got_mean, got_var = frozen_batch_norm(x, **vectors)
    assert relative_rms(got_mean, x.double().mean((0, 2, 3))) <= 1e-7
    assert relative_rms(got_var, x.double().var((0, 2, 3), correction=0)) <= 1e-6
    _, _, _, y_mean, y_var = frozen_batch_norm(
        x, torch.ones(shape[1]), torch.zeros(shape[1]), vectors["center"], output_center=vectors["center"]
    )
    assert torch.equal(y_mean, got_mean) and torch.equal(y_var, got_var)
    seeds = weights((x, got_mean, got_var))
    got = run(frozen_batch_norm, [x], seeds, **vectors)[-1]
    double = {name: vectors[name].double() for name in ("scale", "shift")}
    wanted = run(frozen_batch_norm_reference, [x.double()], [seed.double() for seed in seeds], **double)[-1]
    assert relative_rms(got, wanted) <= max(1e-6, 1e-7 * abs(mean))  # x - mean is no better than mean's own rounding


@pytest.mark.parametrize("has_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("used", range(5), ids=["y", "mean", "var", "y_mean", "y_var"])
def test_backward_through_one_output_alone(used, activation, has_residual):
    x, residual, vectors = make((2, 5, 4, 3))
    leaves = [x.requires_grad_(), residual.requires_grad_()][: 1 + has_residual]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    other = leaves[1] if has_residual else None
    with poisoned():
        got = frozen_batch_norm(x, **vectors, residual=other, activation=activation, output_center=vectors["shift"])[
            used
        ]
        seed = torch.randn(got.shape, generator=torch.Generator().manual_seed(3))
        gradients = torch.autograd.grad(got, leaves, seed, allow_unused=True)
    wanted = frozen_batch_norm_reference(
        exact[0],
        vectors["scale"].double(),
        vectors["shift"].double(),
        residual=exact[1] if has_residual else None,
        activation=activation,
    )[used]
    expected = torch.autograd.grad(wanted, exact, seed.double(), allow_unused=True)
    for one, other in zip(gradients, expected, strict=True):
        # the residual has no share in x's moments
        assert relative_rms(torch.zeros_like(x) if one is None else one, 0 * x if other is None else other) <= 1e-6


@pytest.mark.parametrize("dtype", [FLOAT32, torch.float64], ids=str)
@pytest.mark.parametrize("has_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("activation", ["relu", "relu6", "hardswish"])
def test_derivatives_at_the_kinks_are_torchs(activation, has_residual, dtype):
    kinks = torch.tensor([0.0, 6.0, -3.0, 3.0, -4.0, 7.0], dtype=dtype).repeat(8, 1).reshape(1, 8, 6, 1)
    x = kinks.contiguous(memory_format=torch.channels_last).requires_grad_()
    one, zero = torch.ones(8, dtype=dtype), torch.zeros(8, dtype=dtype)
    residual = torch.zeros_like(x) if has_residual else None
    y = frozen_batch_norm(x, one, zero, zero, residual=residual, activation=activation)[0]
    (wanted,) = torch.autograd.grad(getattr(F, activation)(x).sum(), x)
    (got,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("has_output", [False, True], ids=["", "output"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float64_passes_gradcheck(activation, has_output):
    x, residual, vectors = make((2, 3, 3, 2), dtype=torch.float64)
    arguments = [vector.double() for vector in vectors.values()]

    def call(x, residual):
        x = x.contiguous(memory_format=torch.channels_last)
        center = arguments[1] if has_output else None
        return frozen_batch_norm(x, *arguments, residual=residual, activation=activation, output_center=center)

    assert torch.autograd.gradcheck(call, [x.requires_grad_(), residual.requires_grad_()])


@pytest.mark.parametrize("dtype", [FLOAT32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_is_not_hidden_by_the_activation(activation, dtype):
    x, _, vectors = make((3, 8, 3, 3), dtype=dtype)
    x[0, 2, 1, 1] = float("nan")
    outputs = frozen_batch_norm(x, **vectors, activation=activation, output_center=vectors["shift"])
    assert [t.isnan().sum().item() for t in outputs] == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("value", [-200.0, -90.0, -87.5, -30.0, 30.0, 87.5, 90.0, 200.0])
def test_silu_far_from_zero(value):
    x = torch.full((1, 16, 2, 2), value).contiguous(memory_format=torch.channels_last).requires_grad_()
    one, zero = torch.ones(16), torch.zeros(16)
    y = frozen_batch_norm(x, one, zero, one, activation="silu")[0]
    (dx,) = torch.autograd.grad(y.sum(), x)
    exact = x.detach().double().requires_grad_()
    wanted = F.silu(exact)
    (dwanted,) = torch.autograd.grad(wanted.sum(), exact)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-6, atol=1e-35)
    torch.testing.assert_close(dx.double(), dwanted, rtol=1e-6, atol=1e-35)


@pytest.mark.parametrize("shape", [(8, 64, 14, 14), (40, 24, 28, 28)], ids=str)
def test_neither_a_second_run_nor_a_second_thread_changes_a_bit(shape):
    x, residual, vectors = make(shape)
    results = []
    try:
        for num_threads in (1, 1, 2):
            torch.set_num_threads(num_threads)
            results.append(
                run(
                    frozen_batch_norm,
                    [x, residual],
                    None,
                    **vectors,
                    activation="relu",
                    output_center=vectors["shift"],
                )
            )
            assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_gradients_that_are_not_needed_are_none():
    x, residual, vectors = make((2, 4, 5, 5))
    y = frozen_batch_norm(x.requires_grad_(), **vectors, residual=residual, activation="silu")[0]
    assert y.grad_fn.apply(torch.ones_like(y), None, None)[1:] == (None,) * 6
    y.sum().backward()
    assert residual.grad is None and x.grad is not None


def test_wrong_input_is_refused():
    x, _, vectors = make((2, 4, 5, 5))
    with pytest.raises(ValueError, match="channels_last"):
        frozen_batch_norm(x.contiguous(), **vectors)
    with pytest.raises(ValueError, match="not empty"):
        frozen_batch_norm(x[:0], **vectors)
    with pytest.raises(ValueError, match="scale of shape"):
        frozen_batch_norm(x, **vectors | {"scale": vectors["scale"][:3]})
    with pytest.raises(ValueError, match=r"float32 shift .*float64"):
        frozen_batch_norm(x, **vectors | {"shift": vectors["shift"].double()})
    with pytest.raises(ValueError, match="output_center of shape"):
        frozen_batch_norm(x, **vectors, output_center=torch.zeros(1))
    for residual in (x[:1], x.double()):
        with pytest.raises(ValueError, match="residual"):
            frozen_batch_norm(x, **vectors, residual=residual)
    with pytest.raises(ValueError, match="among none, relu, relu6, silu, hardswish"):
        frozen_batch_norm(x, **vectors, activation="gelu")


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_center_the_map_is_alone_and_the_same(dtype, activation, has_residual):
    x, residual, vectors = make((2, 24, 5, 3), dtype=dtype)
    scale, shift, center = (v.double() if dtype == torch.float64 else v for v in vectors.values())
    leaves = [x, residual][: 1 + has_residual]
    seeds = weights((x,))
    y, mean, *_ = whole = run(frozen_batch_norm, leaves, seeds, scale, shift, center, activation=activation)
    assert mean.shape == (24,)
    with poisoned():
        alone = run(frozen_batch_norm, leaves, seeds, scale, shift, None, activation=activation)
    assert len(alone) == len(whole) - 2 and torch.equal(alone[0], y)
    for made, right in zip(alone[1:], whole[3:], strict=True):
        assert torch.equal(made, right)
    with pytest.raises(ValueError, match="needs a center too"):
        frozen_batch_norm(x, scale, shift, None, output_center=center)
