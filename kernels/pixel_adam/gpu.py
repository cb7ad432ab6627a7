"""pixel_adam in Triton: images, moments and gradient are read once and written once."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.launch import OPTIONS, cdiv, device_of

BLOCK, WARPS = 2048, 8


@triton.jit
def step_kernel(
    images_ptr, gradient_ptr, first_ptr, second_ptr, rate_ptr, step_ptr, low_ptr, high_ptr, size, stride_c,
    C: tl.constexpr, BETA1: tl.constexpr, BETA2: tl.constexpr, LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr,
    EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # images, gradient, first, second: float32, `size` elements in one dense order, with stride_c between channels
    base = tl.program_id(0).to(tl.int64) * BLOCK
    i = tl.arange(0, BLOCK)
    live = i < size - base
    c = (base + i) // stride_c % C
    # Bias corrections in float64: beta^step loses digits in float32 once it is near 1.
    step = tl.load(step_ptr).to(tl.float64)
    correction1 = 1.0 - tl.exp(step * LOG_BETA1) if BETA1 > 0 else step * 0.0 + 1.0
    correction2 = 1.0 - tl.exp(step * LOG_BETA2) if BETA2 > 0 else step * 0.0 + 1.0
    rate = (tl.load(rate_ptr).to(tl.float64) / correction1).to(tl.float32)
    scale = (1.0 / correction2).to(tl.float32)
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
    with device_of(images):
        step_kernel[(cdiv(images.numel(), BLOCK),)](
            images, gradient, first, second, learning_rate, step, low.contiguous(), high.contiguous(), images.numel(),
            height * width if planar else 1, C=channels, BETA1=beta1, BETA2=beta2,
            LOG_BETA1=math.log(beta1) if beta1 > 0 else 0.0, LOG_BETA2=math.log(beta2) if beta2 > 0 else 0.0, EPS=eps,
            BLOCK=BLOCK, num_warps=WARPS, **OPTIONS,
        )  # fmt: skip
