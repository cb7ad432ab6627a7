"""pixel_adam's Triton kernel against torch.optim.Adam in float64, and the clip."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, poisoned, relative_rms
from torch import Tensor

from fastcondense.kernels.pixel_adam import gpu, pixel_adam

LOW, HIGH = torch.tensor([-2.0, -1.5, -1.0]), torch.tensor([2.0, 1.0, 1.5])
LAYOUTS = {"planar": torch.contiguous_format, "channels_last": torch.channels_last}


def state(shape: tuple[int, ...], layout: torch.memory_format) -> tuple[Tensor, Tensor, Tensor]:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, memory_format=layout)
    return images, torch.zeros_like(images), torch.zeros_like(images)


def gradients(shape: tuple[int, ...], count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) * 10.0**-i for i in range(count)]


def steps(
    images: Tensor, first: Tensor, second: Tensor, given: list[Tensor], betas: tuple[float, float], start: int = 1
) -> None:
    for i, gradient in enumerate(given):
        rate, step = (torch.tensor(value, device=DEVICE) for value in (0.1 / (i + 1), float(start + i)))
        with poisoned():
            gpu.pixel_adam(
                images,
                gradient.to(DEVICE),
                first,
                second,
                rate,
                step,
                betas=betas,
                low=LOW[: images.shape[1]].to(DEVICE),
                high=HIGH[: images.shape[1]].to(DEVICE),
                eps=1e-8,
            )


@pytest.mark.parametrize("betas", [(0.5, 0.9), (0.9, 0.999), (0.0, 0.9)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 9, 13), (1, 1, 1, 1), (3, 3, 7, 7), (5, 3, 16, 16)], ids=str)
def test_equals_adam_in_float64(shape: tuple[int, ...], layout: str, betas: tuple[float, float]) -> None:
    images, first, second = state(shape, LAYOUTS[layout])
    leaf = images.detach().cpu().double().requires_grad_()
    low, high = (bound[: shape[1], None, None].double() for bound in (LOW, HIGH))
    adam = torch.optim.Adam([leaf], betas=betas, eps=1e-8)
    given = gradients(shape, 4)
    steps(images, first, second, given, betas)
    for i, gradient in enumerate(given):
        adam.param_groups[0]["lr"] = 0.1 / (i + 1)
        leaf.grad = gradient.double()
        adam.step()
        with torch.no_grad():
            leaf.copy_(leaf.clamp(low, high))
    assert relative_rms(images, leaf) <= 1e-6
    assert relative_rms(first, adam.state[leaf]["exp_avg"]) <= 1e-6
    assert relative_rms(second, adam.state[leaf]["exp_avg_sq"]) <= 1e-6
    assert images.is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_agrees_with_the_cpu_late_in_a_run(layout: str) -> None:
    shape, betas = (2, 3, 7, 9), (0.9, 0.999)
    ours, theirs = state(shape, LAYOUTS[layout]), state(shape, LAYOUTS[layout])
    given = gradients(shape, 1)
    steps(*ours, given, betas, start=3000)
    images, first, second = (t.cpu() for t in theirs)
    rate, step = torch.tensor(0.1), torch.tensor(3000.0)
    pixel_adam(images, given[0], first, second, rate, step, betas=betas, low=LOW, high=HIGH)
    for a, b in zip(ours, (images, first, second), strict=True):
        assert relative_rms(a, b) <= 1e-6


def test_two_runs_agree_bit_for_bit_in_any_layout() -> None:
    shape = (2, 3, 9, 13)
    runs = [state(shape, layout) for layout in (*LAYOUTS.values(), torch.contiguous_format)]
    for run in runs:
        steps(*run, gradients(shape, 2), (0.5, 0.9))
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))


def test_nan_is_not_hidden_by_the_clip() -> None:
    images, first, second = state((1, 3, 2, 2), torch.contiguous_format)
    gradient = torch.zeros(1, 3, 2, 2)
    gradient[0, 1, 0, 1] = float("nan")
    steps(images, first, second, [gradient], (0.5, 0.9))
    assert images.isnan().sum().item() == 1 and images[0, 1, 0, 1].isnan()


def test_refuses_other_layouts_and_shapes() -> None:
    images, first, second = state((2, 3, 4, 5), torch.contiguous_format)
    rate = step = torch.tensor(1.0, device=DEVICE)
    bounds = {"low": LOW.to(DEVICE), "high": HIGH.to(DEVICE), "betas": (0.5, 0.9)}
    other = first.contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="first contiguous or channels_last like the images"):
        pixel_adam(images, images, other, second, rate, step, **bounds)
    transposed = torch.zeros(2, 3, 5, 4, device=DEVICE).transpose(2, 3)
    with pytest.raises(ValueError, match="images contiguous or channels_last"):
        pixel_adam(transposed, images, first, second, rate, step, **bounds)
    with pytest.raises(ValueError, match="gradient of shape"):
        pixel_adam(images, images[:1], first, second, rate, step, **bounds)
    with pytest.raises(ValueError, match="float32 second"):
        pixel_adam(images, images, first, second.double(), rate, step, **bounds)
