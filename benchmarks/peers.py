"""The recover step as the field publishes it, with statistics in forward hooks: what fastcondense is compared with.

Written from the papers' algorithms. What costs time is kept as published: SRe2L and EDC compute a mean, a permuted
copy and a variance a layer; EDC resizes every convolution's input to a multiple of 16 and rearranges it into patches,
holds statistics of every class, and averages those of the batch's labels in every iteration; both read the loss on the
host in every iteration to keep the best images, and clip channel by channel. `Style` turns the avoidable parts off.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcondense.recover.regularizers import image_priors
from fastcondense.vision import torchvision

PATCH = 16
MOMENTUM = 0.4  # of EDC's moving averages
FIRST = 10.0  # weight of the first hook
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Style:
    """How the step is run. The defaults are the published code's; bf16 casts convolutions and linear layers."""

    bf16: bool = False
    channels_last: bool = False
    reads_loss: bool = True
    compiled: bool = False


@dataclass(frozen=True)
class Objective:
    """Loss = cross-entropy + match_weight * statistics (none, sre2l or edc) + tv_weight * TV + l2_weight * L2."""

    statistics: str = "none"
    match_weight: float = 0.01
    tv_weight: float = 0.0
    l2_weight: float = 0.0

    @property
    def crop_scale(self) -> tuple[float, float]:
        """Range of the window's share of the image's area."""
        return (0.5, 1.0) if self.statistics == "edc" else (0.08, 1.0)


def moments(x: Tensor, is_compiled: bool) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, as published or in the form that compilers fuse best."""
    if is_compiled:
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        return mean, var
    return x.mean([0, 2, 3]), x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)


def patch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each 16 x 16 patch of the resized x, over images, channels and pixels."""
    num_images, channels, height, width = x.shape
    rows, columns = -(-height // PATCH), -(-width // PATCH)
    y = F.interpolate(x, (rows * PATCH, columns * PATCH), mode="bilinear")
    patches = y.reshape(num_images, channels, rows, PATCH, columns, PATCH).permute(2, 4, 0, 1, 3, 5)
    patches = patches.reshape(rows * columns, -1)
    return patches.mean(1), patches.var(1, unbiased=False)


class BatchNormHook(nn.Module):
    """SRe2L: distance of the moments of a BatchNorm's input from its running statistics."""

    def __init__(self, norm: nn.BatchNorm2d, style: Style):
        super().__init__()
        self.norm, self.style = norm, style
        norm.register_forward_hook(self.hook)

    def hook(self, _: nn.Module, inputs: tuple[Tensor], __: Tensor) -> None:
        mean, var = moments(inputs[0], self.style.compiled)
        self.distance = torch.norm(self.norm.running_var - var, 2) + torch.norm(self.norm.running_mean - mean, 2)


class AveragedHook(nn.Module):
    """EDC: moving averages of some statistics against global targets and the mean of the labels' class targets."""

    def __init__(self, module: nn.Module, labels: Tensor, num_classes: int, style: Style):
        super().__init__()
        self.labels, self.num_classes, self.style = labels, num_classes, style
        self.is_prepared = False
        module.register_forward_hook(self.hook)

    def prepare(self, sizes: list[int]) -> None:
        """Buffers for statistics of so many entries."""
        for k, size in enumerate(sizes):
            for name, value in (("average", torch.zeros(size)), ("target", torch.rand(size))):
                self.register_buffer(f"{name}{k}", value.to(self.labels.device))
            self.register_buffer(f"classes{k}", torch.rand(self.num_classes, size, device=self.labels.device))
        self.is_prepared = True

    def match(self, statistics: list[Tensor]) -> None:
        if not self.is_prepared:
            self.prepare([len(statistic) for statistic in statistics])
        averages = [getattr(self, f"average{k}") for k in range(len(statistics))]
        with torch.no_grad():
            for average, now in zip(averages, statistics, strict=True):
                average.mul_(MOMENTUM).add_((1 - MOMENTUM) * now)
        targets = [getattr(self, f"target{k}") for k in range(len(statistics))]
        category = [getattr(self, f"classes{k}")[self.labels].mean(0) for k in range(len(statistics))]
        self.distance = 0.5 * sum(
            sum(
                torch.norm(target - (average + now - now.detach()), 2)
                for target, average, now in zip(wanted, averages, statistics, strict=True)
            )
            for wanted in (targets, category)
        )


class AveragedBatchNormHook(AveragedHook):
    """Channel moments of a BatchNorm's input."""

    def hook(self, _: nn.Module, inputs: tuple[Tensor], __: Tensor) -> None:
        self.match(list(moments(inputs[0], self.style.compiled)))


class ConvolutionHook(AveragedHook):
    """Channel and patch moments of a convolution's input."""

    def hook(self, _: nn.Module, inputs: tuple[Tensor], __: Tensor) -> None:
        x = inputs[0]
        self.match([*moments(x, self.style.compiled), *patch_moments(x)])


class Loss(nn.Module):
    """Cross-entropy of a network plus the weighted distances of its hooks."""

    def __init__(self, net: nn.Module, labels: Tensor, num_classes: int, objective: Objective, style: Style):
        super().__init__()
        self.net, self.labels, self.objective = net, labels, objective
        self.hooks = nn.ModuleList()
        for module in list(net.modules()):
            if isinstance(module, nn.BatchNorm2d) and objective.statistics == "sre2l":
                self.hooks.append(BatchNormHook(module, style))
            elif isinstance(module, nn.BatchNorm2d) and objective.statistics == "edc":
                self.hooks.append(AveragedBatchNormHook(module, labels, num_classes, style))
            elif isinstance(module, nn.Conv2d) and objective.statistics == "edc":
                self.hooks.append(ConvolutionHook(module, labels, num_classes, style))

    def forward(self, view: Tensor) -> Tensor:
        loss = F.cross_entropy(self.net(view).float(), self.labels)
        if self.hooks:
            distances = [hook.distance for hook in self.hooks]
            loss = loss + self.objective.match_weight * (FIRST * distances[0] + sum(distances[1:]))
        if self.objective.tv_weight or self.objective.l2_weight:
            variation, norm = image_priors(view)
            loss = loss + self.objective.tv_weight * variation + self.objective.l2_weight * norm
        return loss


class PeerStep:
    """One iteration: crop, loss, gradient, Adam, clip. Calling it advances its random images."""

    def __init__(
        self,
        net: nn.Module,
        num_images: int,
        size: int,
        objective: Objective,
        style: Style,
        device: torch.device,
        num_classes: int = 1000,
    ):
        self.style, self.size, self.device = style, size, device
        self.dtype = torch.bfloat16 if style.bf16 else torch.float32
        self.layout = torch.channels_last if style.channels_last else torch.contiguous_format
        labels = torch.arange(num_images, device=device) % num_classes
        loss = Loss(net.eval().requires_grad_(False), labels, num_classes, objective, style)
        loss.to(device=device, memory_format=self.layout)
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(self.dtype)
        with torch.no_grad():  # hooks learn their sizes
            loss(torch.zeros(num_images, 3, size, size, device=device, dtype=self.dtype))
        self.loss: Callable[[Tensor], Tensor] = torch.compile(loss, mode="max-autotune") if style.compiled else loss
        self.crop_scale = list(objective.crop_scale)
        self.max_roll = 0 if objective.statistics == "edc" else size // 7
        self.images = torch.randn(num_images, 3, size, size, device=device).requires_grad_()
        self.optimizer = torch.optim.Adam([self.images], lr=0.1, betas=(0.5, 0.9), foreach=True)
        self.best: Any = None

    def draw(self) -> tuple[tuple[int, int, int, int], bool, tuple[int, int]]:
        """Window (top, left, height, width), flip and roll of all images, from the host's generators."""
        window = torchvision.transforms.RandomResizedCrop.get_params(self.images, self.crop_scale, [3 / 4, 4 / 3])
        return window, random.random() < 0.5, (random.randint(0, self.max_roll), random.randint(0, self.max_roll))

    def __call__(self) -> None:
        """Advances by one iteration."""
        (top, left, height, width), flip, roll = self.draw()
        transforms = torchvision.transforms.functional
        view = transforms.resized_crop(self.images, top, left, height, width, [self.size, self.size])
        if flip:
            view = transforms.hflip(view)
        if self.max_roll:
            view = torch.roll(view, roll, (2, 3))
        self.optimizer.zero_grad()
        loss = self.loss(view.to(dtype=self.dtype, memory_format=self.layout))
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for c, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
                self.images[:, c] = torch.clamp(self.images[:, c], -mean / std, (1 - mean) / std)
            if self.style.reads_loss and loss.item() < 1e9:
                self.best = self.images.clone()
