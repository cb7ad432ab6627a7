"""pixel_adam on the CPU: images, moments and gradient are read once and written once."""

import math

import numba
import numpy as np
import torch
from torch import Tensor

from ..common.threads import kernel, launch


@kernel
def step_kernel(images, gradient, first, second, low, high, group, rate, step, beta1, beta2, eps):
    # images, gradient, first, second: float32 [rows, L]; low, high: float32 [C or 1, L], of `group` rows each
    # Bias corrections in float64: beta^step loses digits in float32 once it is near 1.
    speed = np.float32(rate[()] / (1.0 - math.pow(beta1, step[()])))
    scale = np.float32(1.0 / (1.0 - math.pow(beta2, step[()])))
    keep2, add1, add2 = np.float32(beta2), np.float32(1.0 - beta1), np.float32(1.0 - beta2)
    floor = np.float32(eps)
    for r in numba.prange(images.shape[0]):
        image, g, m, v = images[r], gradient[r], first[r], second[r]
        bottom, top = low[r // group % low.shape[0]], high[r // group % high.shape[0]]
        for i in range(image.size):
            m_now = m[i] + add1 * (g[i] - m[i])
            v_now = v[i] * keep2 + g[i] * g[i] * add2
            value = image[i] - np.divide(speed * m_now, np.sqrt(v_now * scale) + floor)
            # Comparisons, not minimum and maximum: NaN stays NaN, so that divergence is seen.
            value = bottom[i] if value < bottom[i] else value
            value = top[i] if value > top[i] else value
            m[i], v[i], image[i] = m_now, v_now, value


def pixel_adam(
    images: Tensor, gradient: Tensor, first: Tensor, second: Tensor, learning_rate: Tensor, step: Tensor, *,
    betas: tuple[float, float], low: Tensor, high: Tensor, eps: float,
) -> None:  # fmt: skip
    """`pixel_adam` of checked arguments, all on the CPU; the gradient may have any layout."""
    num_images, channels, height, width = images.shape
    if images.is_contiguous():
        gradient = gradient.contiguous()
        shape = (num_images * channels * height, width)
        low, high = (bound[:, None].repeat(1, width) for bound in (low, high))
    else:
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        shape = (num_images * height, width * channels)
        images, gradient, first, second = (x.permute(0, 2, 3, 1) for x in (images, gradient, first, second))
        low, high = (bound.repeat(1, width) for bound in (low, high))
    rows = (x.view(shape) for x in (images, gradient, first, second))
    launch(step_kernel, *rows, low, high, height, learning_rate, step, *map(float, betas), float(eps))
