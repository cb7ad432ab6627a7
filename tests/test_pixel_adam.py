"""pixel_adam on the CPU against torch.optim.Adam followed by a clamp a channel, in float64."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import poisoned, relative_rms
from torch import Tensor

from fastcondense.kernels.pixel_adam import pixel_adam
from fastcondense.kernels.pixel_adam.definition import pixel_adam_reference

LOW, HIGH = torch.tensor([-1.0, -0.8, -1.2]), torch.tensor([1.0, 0.9, 1.1])
LAYOUTS = {"planar": torch.contiguous_format, "channels_last": torch.channels_last}


def state(shape: tuple[int, ...], layout: str) -> list[Tensor]:
    """Images, first and second moments."""
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=LAYOUTS[layout])
    return [images, torch.zeros_like(images), torch.zeros_like(images)]


def advance(images: Tensor, first: Tensor, second: Tensor, gradient: Tensor, step: int, **changes: object) -> None:
    """One step on the CPU: betas (0.5, 0.9), rate 0.25 / step."""
    channels = images.shape[1]
    settings = {"betas": (0.5, 0.9), "low": LOW[:channels], "high": HIGH[:channels], **changes}
    with poisoned():
        pixel_adam(images, gradient, first, second, torch.tensor(0.25 / step), torch.tensor(float(step)), **settings)


@pytest.mark.parametrize("betas", [(0.5, 0.9), (0.9, 0.999), (0.0, 0.9)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(5, 3, 7, 9), (1, 1, 1, 1), (2, 3, 16, 16), (0, 3, 4, 4)], ids=str)
def test_equals_adam_and_clip(shape: tuple[int, ...], layout: str, betas: tuple[float, float]) -> None:
    images, first, second = state(shape, layout)
    leaf = images.double().requires_grad_()
    adam = torch.optim.Adam([leaf], betas=betas, eps=1e-8)
    low, high = (bound[: shape[1], None, None].double() for bound in (LOW, HIGH))
    defined = [tensor.double() for tensor in (images, first, second)]
    bounds = {"low": LOW[: shape[1]].double(), "high": HIGH[: shape[1]].double()}
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 60):
        gradient = torch.randn(shape, generator=generator)
        if step % 2:
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        adam.param_groups[0]["lr"], leaf.grad = 0.25 / step, gradient.double()
        adam.step()
        with torch.no_grad():
            leaf.copy_(leaf.clamp(low, high))
        advance(images, first, second, gradient, step, betas=betas)
        rate, number = torch.tensor([0.25 / step, step], dtype=torch.float64)
        defined = list(
            pixel_adam_reference(
                defined[0], gradient.double(), *defined[1:], rate, number, betas=betas, **bounds, eps=1e-8
            )
        )
    torch.testing.assert_close(defined[0], leaf.detach(), rtol=1e-12, atol=1e-12)
    for got, wanted in zip(
        (images, first, second), (leaf, adam.state[leaf]["exp_avg"], adam.state[leaf]["exp_avg_sq"]), strict=True
    ):
        assert not shape[0] or relative_rms(got, wanted) <= 1e-6
        assert got.is_contiguous(memory_format=LAYOUTS[layout])


def test_bias_corrections_keep_their_digits_late_in_a_run() -> None:
    images, first, second = state((1, 3, 2, 2), "planar")
    before, gradient, step, betas = images.double(), torch.ones_like(images), 3000, (0.9, 0.999)
    advance(images, first, second, gradient, step, betas=betas, low=LOW - 9, high=HIGH + 9)
    m_hat, v_hat = 0.1 / (1 - 0.9**step), 0.001 / (1 - 0.999**step)
    wanted = torch.full_like(before, -0.25 / step * m_hat / (v_hat**0.5 + 1e-8))
    assert relative_rms(first, torch.full_like(before, 0.1)) <= 1e-6
    assert relative_rms(images.double() - before, wanted) <= 1e-6 * float(before.abs().max() / wanted.abs().max())


def test_a_zero_gradient_moves_nothing() -> None:
    images, first, second = state((1, 3, 2, 2), "planar")
    images.clamp_(-0.5, 0.5)
    before = images.clone()
    advance(images, first, second, torch.zeros_like(images), 1)
    assert torch.equal(images, before)


def test_nan_is_not_hidden_by_the_clip() -> None:
    images, first, second = state((1, 3, 2, 2), "channels_last")
    gradient = torch.zeros(1, 3, 2, 2)
    gradient[0, 1, 0, 1] = float("nan")
    advance(images, first, second, gradient, 1)
    assert images.isnan().sum().item() == 1 and images[0, 1, 0, 1].isnan()


def test_threads_and_layouts_move_no_bit() -> None:
    threads, runs = torch.get_num_threads(), []
    try:
        for number, layout in ((1, "planar"), (2, "planar"), (2, "channels_last")):
            torch.set_num_threads(number)
            runs.append(state((4, 3, 9, 13), layout))
            gradient = torch.randn(4, 3, 9, 13, generator=torch.Generator().manual_seed(1))
            for step in (1, 2):
                advance(*runs[-1], gradient, step)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))


def test_refuses_other_layouts_shapes_and_dtypes() -> None:
    images, first, second = state((2, 3, 4, 5), "planar")
    with pytest.raises(ValueError, match="first contiguous or channels_last like the images"):
        advance(images, first.contiguous(memory_format=torch.channels_last), second, images, 1)
    with pytest.raises(ValueError, match="gradient of shape"):
        advance(images, first, second, images[:1], 1)
    with pytest.raises(ValueError, match="low of shape"):
        advance(images, first, second, images, 1, low=LOW[:1])
    with pytest.raises(ValueError, match="float32 gradient"):
        advance(images, first, second, images.double(), 1)
