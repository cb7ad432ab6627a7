"""pixel_adam in Triton: images, moments and gradient are read once and written once."""

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.launch import OPTIONS, cdiv, device_of

BLOCK, WARPS = 2048, 8


@triton.jit
def step_kernel(
    images_ptr, gradient_ptr, first_ptr, second_ptr, rate_ptr, step_ptr, corrections_ptr, low_ptr, high_ptr,
    size, stride_c, C: tl.constexpr, STEPS: tl.constexpr, BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # images, gradient, first, second: float32, `size` elements in one dense order, with stride_c between channels
    base = tl.program_id(0).to(tl.int64) * BLOCK
    i = tl.arange(0, BLOCK)
    live = i < size - base
    c = (base + i) // stride_c % C
    entry = tl.minimum(tl.load(step_ptr).to(tl.int32), STEPS) - 1
    rate = tl.div_rn(tl.load(rate_ptr), tl.load(corrections_ptr + entry))
    scale = tl.load(corrections_ptr + STEPS + entry)
    gradient = tl.load(gradient_ptr + base + i, mask=live, other=0.0)
    first = tl.load(first_ptr + base + i, mask=live, other=0.0)
    second = tl.load(second_ptr + base + i, mask=live, other=0.0)
    first = tl.fma(gradient - first, first * 0.0 + (1.0 - BETA1), first)
    second = second * BETA2 + gradient * gradient * (1.0 - BETA2)
    update = tl.div_rn(rate * first, tl.sqrt_rn(second * scale) + EPS)
    image = tl.load(images_ptr + base + i, mask=live, other=0.0) - update
    low = tl.load(low_ptr + c, mask=live, other=0.0)
    high = tl.load(high_ptr + c, mask=live, other=0.0)
    # Comparisons, not minimum and maximum: NaN stays NaN, so that divergence is seen.
    image = tl.where(image < low, low, image)
    image = tl.where(image > high, high, image)
    tl.store(first_ptr + base + i, first, mask=live)
    tl.store(second_ptr + base + i, second, mask=live)
    tl.store(images_ptr + base + i, image, mask=live)


@functools.cache
def corrections(betas: tuple[float, float], device: torch.device) -> Tensor:
    """1 - beta1^t and 1 / (1 - beta2^t) for t = 1, 2, ... to where both are 1, or 2^20: float32 [2, T].

    Made of float64: beta^t loses digits in float32 once it is near 1, and on most GPUs float64 in every thread is slow.
    """
    ends = [-54 * math.log(2) / math.log(beta) if beta > 0 else 1.0 for beta in betas]  # there beta^t is below 2^-54
    steps = torch.arange(1, 1 + min(1 << 20, math.ceil(max(ends))), dtype=torch.float64)
    first, second = (1 - torch.pow(torch.tensor(beta, dtype=torch.float64), steps) for beta in betas)
    return torch.stack((first, 1 / second)).float().to(device)


def pixel_adam(
    images: Tensor, gradient: Tensor, first: Tensor, second: Tensor, learning_rate: Tensor, step: Tensor, *,
    betas: tuple[float, float], low: Tensor, high: Tensor, eps: float,
) -> None:  # fmt: skip
    """`pixel_adam` of checked arguments, all on one device; the gradient may have any layout."""
    planar = images.is_contiguous()
    gradient = gradient.contiguous(memory_format=torch.contiguous_format if planar else torch.channels_last)
    _, channels, height, width = images.shape
    beta1, beta2 = betas
    if images.numel() == 0:
        return
    table = corrections((beta1, beta2), images.device)
    with device_of(images):
        step_kernel[(cdiv(images.numel(), BLOCK),)](
            images, gradient, first, second, learning_rate, step, table, low.contiguous(), high.contiguous(),
            images.numel(), height * width if planar else 1, C=channels, STEPS=table.shape[1], BETA1=beta1, BETA2=beta2,
            EPS=eps, BLOCK=BLOCK, num_warps=WARPS, **OPTIONS,
        )  # fmt: skip
