"""Colours of self-supervised views: jitter, grey and blur, a draw a view that a seed replays.

The operations are those of torchvision's ColorJitter, Grayscale and GaussianBlur, each with its own amount
for every image of a batch, which torchvision's lack. The order of the jitter's four is drawn for an epoch and a view,
not for an image.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..recipe.settings import SelfSupervision
from ..rng import Stream

_LUMA = (0.2989, 0.587, 0.114)
_JITTERED = 0.8  # probability that a view's colours are jittered, MoCo v2's
_SIGMAS = 0.1, 2.0  # range of the blur's standard deviation in pixels, MoCo v2's


def recolor(
    images: Tensor, ids: np.ndarray, epoch: int, view: int, settings: SelfSupervision, stream: Stream
) -> Tensor:
    """View number `view` of the samples `ids`, int64 [N], in `epoch`, in its colours.

    images: float32 [N, 3, H, W] in [0, 1], and so is the result. What happens to a sample depends on (stream, id,
    epoch, view) alone.
    """

    def rows(uniform: np.ndarray, probability: float) -> Tensor:
        return torch.from_numpy(np.flatnonzero(uniform < probability)).to(images.device)

    def amounts(values: np.ndarray, chosen: Tensor) -> Tensor:
        return torch.from_numpy(values).float().to(images.device)[chosen][:, None, None, None]

    first = 4 * view  # counters of this view's draws
    strengths = stream.uniform(ids, epoch, first)
    u_jitter, u_grey, u_blur, _ = stream.uniform(ids, epoch, first + 1)
    u_sigma = stream.uniform(ids, epoch, first + 2)[0]
    order = np.argsort(np.concatenate(stream.words(0, epoch, first + 3)), kind="stable")
    chosen = rows(u_jitter, _JITTERED)
    x = images
    for k in order:
        if (strength := settings.jitter[k]) > 0 and len(chosen):
            change = strength * (2 * strengths[k] - 1)
            amount = amounts(change if k == _HUE else np.maximum(0, 1 + change), chosen)
            x = x.index_copy(0, chosen, _JITTER[k](x[chosen], amount))
    x = _replace(x, rows(u_grey, settings.grey), lambda part: grey(part).expand(-1, 3, -1, -1))
    low, high = _SIGMAS
    chosen = rows(u_blur, settings.blur)
    sigmas = amounts(low + (high - low) * u_sigma, chosen)[:, :, 0, 0]
    return _replace(x, chosen, lambda part: blur(part, sigmas, high))


def _replace(x: Tensor, rows: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    return x.index_copy(0, rows, change(x[rows])) if len(rows) else x


# --- operations on x: float [N, 3, H, W] in [0, 1], by amounts [N, 1, 1, 1] ------------------------------------------


def grey(x: Tensor) -> Tensor:
    """Luma, [N, 1, H, W]."""
    return (x * x.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """x times factor, clamped."""
    return (factor * x).clamp(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """x with another contrast: from the image's mean luma (factor 0) through x (1) and beyond, clamped."""
    return torch.lerp(grey(x).mean((2, 3), keepdim=True).expand_as(x), x, factor.expand_as(x)).clamp(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """x with another saturation: from the pixel's luma (factor 0) through x (1) and beyond, clamped."""
    return torch.lerp(grey(x).expand_as(x), x, factor.expand_as(x)).clamp(0, 1)


def hue(x: Tensor, turn: Tensor) -> Tensor:
    """The hue (of HSV) turned by a share of the circle."""
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = value - low
    red, green, blue = x.unbind(1)
    scale = torch.where(chroma > 0, chroma, 1)[:, 0]
    sixths = torch.where(
        value[:, 0] == red,
        (green - blue) / scale,
        torch.where(value[:, 0] == green, 2 + (blue - red) / scale, 4 + (red - green) / scale),
    )
    # A channel falls from the value to the low as the hue leaves its third of the circle.
    offsets = x.new_tensor((5, 3, 1))[:, None, None]
    k = torch.remainder(offsets + sixths[:, None] + 6 * turn, 6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def blur(x: Tensor, sigmas: Tensor, largest: float) -> Tensor:
    """Gaussian blur with the standard deviation sigmas [N, 1]; the edges are mirrored.

    The kernel reaches three times the `largest` sigma, or as far as a mirror of the image does.
    """
    num, channels, height, width = x.shape
    reach = min(int(np.ceil(3 * largest)), height - 1, width - 1)
    at = torch.arange(-reach, reach + 1, device=x.device)
    kernel = torch.exp(-0.5 * (at / sigmas).square())  # [N, K]
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    planes = F.pad(x, (reach,) * 4, mode="reflect").reshape(1, num * channels, height + 2 * reach, width + 2 * reach)
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=num * channels)
    return F.conv2d(planes, kernel[:, None, None, :], groups=num * channels).reshape(x.shape)


_JITTER, _HUE = (brightness, contrast, saturation, hue), 3
