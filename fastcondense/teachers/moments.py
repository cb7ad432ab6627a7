"""The modules of a fused network that keep moments: frozen BatchNorms, and taps in front of convolutions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.feature_maps import feature_maps
from ..kernels.frozen_batch_norm import Activation, frozen_batch_norm
from ..kernels.frozen_batch_norm_pool import frozen_batch_norm_pool
from ..kernels.patch_moments import needs_neighbours, patch_moments

Moments = Sequence[tuple[Tensor, ...]]
"""Layer by layer, its vectors: mean and biased variance of the channels [C], of the patches [P], or both in a row;
[N, C] and [N, P] where they are those of each image."""

Kept = Literal["input", "output", "patches"]
"""Mean and variance of the channels of a module's input or output, or of the patches of its input."""


class Keeper(nn.Module):
    """A module that keeps moments of its last forward, until they are forgotten."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.kept: dict[Kept, tuple[Tensor, Tensor]] = {}
        self.is_per_image = False
        """Whether it keeps the moments of each image instead of the batch's; plain torch, so for statistics alone."""
        self.is_idle = False
        """Whether it keeps none, see `idle`."""

    def forget(self) -> None:
        """Forgets what it kept: the caller alone decides how long the autograd graph lives."""
        self.kept.clear()


@dataclass
class Layer:
    """A layer whose moments are matched: its name in the network, and who keeps which part of its moments."""

    name: str
    parts: list[tuple[Keeper, Kept]]

    @property
    def is_batch_norm(self) -> bool:
        """Whether it is the input of a BatchNorm, rather than that of a convolution."""
        return all(isinstance(keeper, BatchNormKeeper) and what == "input" for keeper, what in self.parts)

    @property
    def moments(self) -> tuple[Tensor, ...] | None:
        """Mean and variance of each part, in a row; None before a forward."""
        if any(what not in keeper.kept for keeper, what in self.parts):
            return None
        return tuple(vector for keeper, what in self.parts for vector in keeper.kept[what])


def image_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each image's channels over its pixels: x [N, C, H, W] -> [N, C] each."""
    mean = x.mean((2, 3), keepdim=True)  # torch.var_mean takes fifty times as long on a CPU
    return mean.flatten(1), (x - mean).square_().mean((2, 3))


def image_patch_moments(x: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each image's p x p patches over channels and pixels: x [N, C, H, W] -> [N, P] each.

    The feature is resized to the next multiples of p, and patches are counted, as in `patch_moments`.
    """
    height, width = (-(-size // p) * p for size in x.shape[2:])
    y = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    tiles = y.unflatten(2, (-1, p)).unflatten(4, (-1, p))
    mean = tiles.mean((1, 3, 5), keepdim=True)
    return mean.flatten(1), (tiles - mean).square_().mean((1, 3, 5)).flatten(1)


class BatchNormKeeper(Keeper):
    """A BatchNorm in evaluation mode, with what follows it: a residual, an activation, the stem's 3x3 max-pooling."""

    scale: Tensor
    shift: Tensor
    running_mean: Tensor
    running_var: Tensor
    output_center: Tensor

    def __init__(self, norm: nn.BatchNorm2d | nn.SyncBatchNorm, name: str):
        super().__init__(name)
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError(f"BatchNorm {name} has no running statistics to match")
        var = norm.running_var.double()
        weight = torch.ones_like(var) if norm.weight is None else norm.weight.detach().double()
        bias = torch.zeros_like(var) if norm.bias is None else norm.bias.detach().double()
        scale = weight / torch.sqrt(var + norm.eps)
        dtype = norm.running_mean.dtype
        self.register_buffer("scale", scale.to(dtype))
        self.register_buffer("shift", (bias - norm.running_mean.double() * scale).to(dtype))
        self.register_buffer("running_mean", norm.running_mean.detach().clone())
        self.register_buffer("running_var", norm.running_var.detach().clone())
        self.register_buffer("output_center", torch.zeros_like(scale, dtype=dtype), persistent=False)
        self.activation: Activation = "none"
        self.has_pool = False
        self.keeps_output = False
        """Whether it keeps the moments of what it writes too: a convolution reads it."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        vectors = (self.scale, self.shift, None if self.is_idle else self.running_mean)
        center = self.output_center if self.keeps_output and not self.is_idle else None
        if self.has_pool:
            y, *moments = frozen_batch_norm_pool(x, self.scale, self.shift, self.running_mean, output_center=center)
        elif residual is not None and residual.shape != x.shape:  # the addition broadcasts: leave it to torch
            y, *moments = frozen_batch_norm(x, *vectors)
            y = y + residual
            if self.activation != "none":
                y = getattr(F, self.activation)(y)
            if center is not None:
                moments += [*torch.var_mean(y.to(center.dtype), (0, 2, 3), correction=0)][::-1]
        else:
            y, *moments = frozen_batch_norm(
                x, *vectors, residual=residual, activation=self.activation, output_center=center
            )
        if not self.is_idle:
            self.kept["input"] = image_moments(x) if self.is_per_image else (moments[0], moments[1])
            if self.keeps_output:
                self.kept["output"] = image_moments(y) if self.is_per_image else (moments[2], moments[3])
        return y


class ConvolutionTap(Keeper):
    """Hands a convolution's input on, and keeps the moments of its channels, of its patches, or both."""

    center: Tensor
    zero: Tensor

    def __init__(self, convolution: nn.Conv2d, name: str, has_channels: bool, patch_size: int | None):
        super().__init__(name)
        self.has_channels, self.patch_size = has_channels, patch_size
        self.maps: tuple[Tensor, int] | None = None
        """Maps of the last input and its number of images, until `take_patch_moments` makes moments of them."""
        dtype = convolution.weight.dtype
        self.register_buffer("center", torch.zeros(convolution.in_channels, dtype=dtype), persistent=False)
        self.register_buffer("zero", torch.zeros((), dtype=dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_idle or (not self.has_channels and self.patch_size is None):
            return x
        if self.is_per_image:
            if self.has_channels:
                self.kept["input"] = image_moments(x)
            if self.patch_size is not None:
                self.kept["patches"] = image_patch_moments(x, self.patch_size)
            return x
        x = x.contiguous(memory_format=torch.channels_last)
        num_images, _, height, width = x.shape
        has_neighbours = self.patch_size is not None and needs_neighbours(height, width, self.patch_size)
        x, maps, mean, var = feature_maps(
            x, self.center, has_neighbours=has_neighbours, has_channels=self.has_channels, map_center=self.zero
        )
        if mean is not None and var is not None:
            self.kept["input"] = (mean, var)
        if self.patch_size is not None:
            self.maps = maps, num_images
        return x

    def forget(self) -> None:
        super().forget()
        self.maps = None


@contextmanager
def idle(keepers: Collection[Keeper], device: torch.device) -> Iterator[None]:
    """The keepers take no moments in the block, which are a third of what a frozen BatchNorm costs a CPU.

    On a GPU they cost next to nothing, and another thread may want them: there they are taken, and to be forgotten.
    """
    is_cpu = device.type == "cpu"
    for keeper in keepers:
        keeper.is_idle = is_cpu
    try:
        yield
    finally:
        for keeper in keepers:
            keeper.is_idle = False


def take_patch_moments(keepers: Iterable[Keeper]) -> None:
    """Lets taps keep the moments of the patches that they have seen: together those of maps of one size."""
    waiting: dict[tuple[int, ...], list[tuple[ConvolutionTap, Tensor]]] = {}
    for tap in keepers:
        if isinstance(tap, ConvolutionTap) and tap.maps is not None and tap.patch_size is not None:
            maps, num_images = tap.maps
            waiting.setdefault((num_images, tap.patch_size, *maps.shape), []).append((tap, maps))
            tap.maps = None
    for (num_images, p, *_), together in waiting.items():
        channels = [len(tap.center) for tap, _ in together]
        means, variances = patch_moments(torch.stack([maps for _, maps in together]), num_images, channels, p)
        for (tap, _), mean, var in zip(together, means.unbind(), variances.unbind(), strict=True):
            tap.kept["patches"] = mean, var
