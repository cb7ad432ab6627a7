"""image_prior's Triton kernels against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, TOLERANCE, poisoned, relative_rms
from torch import Tensor

from fastcondense.kernels import image_prior_triton
from fastcondense.kernels.image_prior import image_prior_reference
from fastcondense.kernels.image_prior_triton import ImagePrior

LAYOUTS = {"planar": torch.contiguous_format, "channels_last": torch.channels_last}
SHAPES = [(2, 3, 9, 13), (1, 3, 24, 32), (3, 1, 5, 8), (18, 3, 4, 5), (2, 4, 1, 6), (2, 3, 6, 1), (1, 1, 1, 1)]
WEIGHTS = (0.25, -3.0)


def source(shape: tuple[int, ...], layout: str, mean: float = 0.0) -> Tensor:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + mean
    return images.to(DEVICE, memory_format=LAYOUTS[layout])


def both(images: Tensor, function=ImagePrior.apply) -> tuple[Tensor, Tensor, Tensor]:
    """The two values and the gradient of their weighted sum."""
    leaf = images.detach().requires_grad_()
    variation, norm = function(leaf)
    (gradient,) = torch.autograd.grad(WEIGHTS[0] * variation + WEIGHTS[1] * norm, leaf)
    return variation, norm, gradient


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradient(shape: tuple[int, ...], layout: str) -> None:
    images = source(shape, layout)
    with poisoned():
        ours = both(images)
    for got, wanted in zip(ours, both(images.double(), image_prior_reference), strict=True):
        assert relative_rms(got, wanted) <= 1e-6
    assert ours[2].stride() == images.stride()


def test_many_chunks_an_image_and_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_prior_triton, "BLOCK", 64)
    monkeypatch.setattr(image_prior_triton, "COMBINE_P", 2)
    for programs in (1024, 20):  # seven chunks of one block, and one chunk of seven
        monkeypatch.setattr(image_prior_triton, "PROGRAMS", programs)
        images = source((20, 3, 9, 16), "channels_last")
        for got, wanted in zip(both(images), both(images.double(), image_prior_reference), strict=True):
            assert relative_rms(got, wanted) <= 1e-6


def test_a_large_mean_costs_no_digits() -> None:
    images = source((2, 3, 9, 13), "channels_last", mean=1000.0)
    for got, wanted in zip(both(images), both(images.double(), image_prior_reference), strict=True):
        assert relative_rms(got, wanted) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    images = source((2, 3, 9, 13), "channels_last").to(dtype)
    variation, norm, gradient = both(images)
    wanted = both(images.double(), image_prior_reference)
    assert variation.dtype == norm.dtype == torch.float32 and gradient.dtype == dtype
    assert relative_rms(variation, wanted[0]) <= 1e-6 and relative_rms(norm, wanted[1]) <= 1e-6
    assert relative_rms(gradient, wanted[2]) <= TOLERANCE[dtype]


@pytest.mark.parametrize("which", [0, 1])
def test_one_output_alone(which: int) -> None:
    images = source((2, 3, 9, 13), "channels_last").requires_grad_()
    with poisoned():
        (gradient,) = torch.autograd.grad(ImagePrior.apply(images)[which], images)
    (wanted,) = torch.autograd.grad(
        image_prior_reference(leaf := images.detach().double().requires_grad_())[which], leaf
    )
    assert relative_rms(gradient, wanted) <= 1e-6


def test_where_a_norm_is_zero_the_gradient_is_zero() -> None:
    flat = torch.full((2, 3, 6, 5), 0.5, device=DEVICE).requires_grad_()  # no differences
    variation, norm = ImagePrior.apply(flat)
    assert variation == 0 and not torch.autograd.grad(variation, flat, retain_graph=True)[0].any()
    assert torch.autograd.grad(norm, flat)[0].all()
    black = source((2, 3, 6, 5), "planar")
    black[1] = 0  # no norm
    (gradient,) = torch.autograd.grad(ImagePrior.apply(black.requires_grad_())[1], black)
    assert gradient[0].all() and not gradient[1].any()


def test_two_runs_agree_bit_for_bit() -> None:
    images = source((3, 3, 9, 13), "channels_last")
    for one, other in zip(both(images), both(images), strict=True):
        assert torch.equal(one, other)
