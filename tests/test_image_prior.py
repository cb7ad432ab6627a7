"""image_prior on the CPU, and its reference, against float64 norms written out."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from kernel_checks import TOLERANCE, poisoned, relative_rms
from torch import Tensor

from fastcondense.kernels import image_prior_numba
from fastcondense.kernels.image_prior import image_prior, image_prior_reference

LAYOUTS = {"planar": torch.contiguous_format, "channels_last": torch.channels_last}
SHAPES = [(2, 3, 9, 13), (1, 3, 64, 64), (5, 1, 7, 8), (70, 3, 4, 5), (2, 4, 1, 6), (2, 3, 6, 1), (1, 1, 1, 1)]
WEIGHTS = (0.25, -3.0)


def source(shape: tuple[int, ...], layout: str, mean: float = 0.0) -> Tensor:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + mean
    return images.contiguous(memory_format=LAYOUTS[layout])


def both(images: Tensor, function=image_prior) -> tuple[Tensor, Tensor, Tensor]:
    """The two values and the gradient of their weighted sum."""
    leaf = images.detach().requires_grad_()
    variation, norm = function(leaf)
    (gradient,) = torch.autograd.grad(WEIGHTS[0] * variation + WEIGHTS[1] * norm, leaf)
    return variation, norm, gradient


def test_reference_is_the_definition() -> None:
    x = source((2, 3, 5, 4), "planar").double()
    norm = torch.linalg.vector_norm
    variation = (
        norm(x[..., :, 1:] - x[..., :, :-1])
        + norm(x[..., 1:, :] - x[..., :-1, :])
        + norm(x[..., 1:, 1:] - x[..., :-1, :-1])
        + norm(x[..., 1:, :-1] - x[..., :-1, 1:])
    )
    torch.testing.assert_close(image_prior_reference(x), (variation, (norm(x[0]) + norm(x[1])) / 2))
    assert torch.autograd.gradcheck(image_prior_reference, x.requires_grad_())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32(shape: tuple[int, ...], mean: float, layout: str) -> None:
    images = source(shape, layout, mean)
    with poisoned():
        ours = both(images)
    for got, wanted in zip(ours, both(images.double(), image_prior_reference), strict=True):
        assert relative_rms(got, wanted) <= 1e-6
    assert all(value.dtype == torch.float32 and value.shape == () for value in ours[:2])
    assert ours[2].stride() == images.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_take_the_closed_form(dtype: torch.dtype) -> None:
    images = source((2, 3, 9, 13), "channels_last").to(dtype)
    variation, norm, gradient = both(images)
    wanted = both(images.double(), image_prior_reference)
    is_double = dtype == torch.float64
    assert variation.dtype == norm.dtype == (torch.float64 if is_double else torch.float32)
    assert relative_rms(variation, wanted[0]) <= 1e-6 and relative_rms(norm, wanted[1]) <= 1e-6
    assert gradient.dtype == dtype and relative_rms(gradient, wanted[2]) <= TOLERANCE.get(dtype, 1e-12)


@pytest.mark.parametrize("which", [0, 1])
def test_an_unused_output_costs_no_gradient_work(which: int) -> None:
    images = source((2, 3, 9, 13), "channels_last").requires_grad_()
    with mock.patch.object(image_prior_numba, "launch", wraps=image_prior_numba.launch) as launch:
        (gradient,) = torch.autograd.grad(image_prior(images)[which], images)
    (wanted,) = torch.autograd.grad(
        image_prior_reference(leaf := images.detach().double().requires_grad_())[which], leaf
    )
    assert relative_rms(gradient, wanted) <= 1e-6
    has_differences = [call.args[6] for call in launch.call_args_list[1:]]
    assert has_differences == [which == 0]


def test_where_a_norm_is_zero_the_gradient_is_zero() -> None:
    flat = torch.full((2, 3, 6, 5), 0.5).requires_grad_()  # no differences
    variation, norm = image_prior(flat)
    assert variation == 0 and not torch.autograd.grad(variation, flat, retain_graph=True)[0].any()
    assert torch.autograd.grad(norm, flat)[0].all()
    black = source((2, 3, 6, 5), "planar")
    black[1] = 0  # no norm
    (gradient,) = torch.autograd.grad(image_prior(black.requires_grad_())[1], black)
    assert gradient[0].all() and not gradient[1].any()


def test_nan_reaches_the_gradient() -> None:
    images = source((2, 3, 6, 5), "planar")
    images[0, 0, 0, 0] = torch.nan
    variation, norm, gradient = both(images)
    assert variation.isnan() and norm.isnan() and gradient.isnan().all()


@pytest.mark.parametrize("shape", [(2, 3, 40, 17), (70, 3, 4, 5)], ids=str)
def test_threads_move_no_bit(shape: tuple[int, ...]) -> None:
    threads = torch.get_num_threads()
    try:
        runs = []
        for number in (1, 2, 1):
            torch.set_num_threads(number)
            runs.append(both(source(shape, "channels_last")))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_refuses_other_layouts_and_shapes() -> None:
    with pytest.raises(ValueError, match="contiguous or channels_last images"):
        image_prior(torch.zeros(2, 3, 5, 4).transpose(2, 3))
    for shape in ((3, 4, 5), (0, 3, 4, 5)):
        with pytest.raises(ValueError, match="some images of shape"):
            image_prior(torch.zeros(shape))
