"""The distance of a network's gradients on condensed images from those on real ones, and its image gradient.

No graph of a backward pass is kept. The image gradient of a function of weight gradients G is that of <R, G>, R its
derivative in G: the change of the loss along R, differentiated (Pearlmutter, 1994), forward mode under reverse mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn import functional as F

Weights = dict[str, Tensor]


class GradientMatching:
    """Matches the gradients of all weights of more than two dimensions; biases, norms and classifiers are left out.

    Images must not see each other: the gradients of the groups of a batch, taken apart, make up those of any union,
    and so a subset costs nothing beside its set. Raises ValueError for a network with BatchNorm.
    """

    def __init__(self, net: nn.Module, metric: Literal["mse", "l1"], *, is_compiled: bool = False):
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()):
            raise ValueError("gradient matching needs a network without BatchNorm, e.g. zoo/convnet3_in")
        self.net, self.metric = net, metric
        self.names = [name for name, weight in net.named_parameters() if weight.dim() > 2]

        def entropy(matched: Weights, others: Weights, images: Tensor, labels: Tensor) -> Tensor:
            logits = functional_call(net, {**others, **matched}, (images,))
            return F.cross_entropy(logits, labels, reduction="sum")

        def change(images: Tensor, directions: Weights, matched: Weights, others: Weights, labels: Tensor) -> Tensor:
            return jvp(lambda weights: entropy(weights, others, images, labels), (matched,), (directions,))[1]

        compiled: Callable[[Any], Any] = torch.compile(dynamic=True) if is_compiled else lambda function: function
        self.weight_gradient = compiled(grad(entropy))
        """(matched weights, others, images, labels) -> the gradient of the summed cross-entropy in the matched."""
        self.image_gradient = compiled(grad(change))
        """(images, directions, matched, others, labels) -> the gradient in the images of its change along those."""

    def __call__(
        self, real: Tensor, groups: Sequence[Tensor], label: Tensor, terms: Sequence[Sequence[int]], live: Sequence[int]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The loss, a scalar, and its gradient in the images of each group, None for those that are not `live`.

        real: [B, 3, S, S]; groups: [b_g, 3, S, S] each, of the class `label` as real, int64 [1]. terms: the groups
        that a term's condensed images are; the loss is sum_t dist(mean real gradient, mean gradient of term t).
        """
        weights = {name: weight.detach() for name, weight in self.net.named_parameters()}
        matched = {name: weights.pop(name) for name in self.names}

        def gradient(images: Tensor) -> Weights:
            return self.weight_gradient(matched, weights, images, label.expand(len(images)))

        wanted = {name: g / len(real) for name, g in gradient(real).items()}
        made = [gradient(images) for images in groups]
        loss: Tensor = real.new_zeros(())
        directions = [{name: torch.zeros_like(w) for name, w in matched.items()} for _ in groups]
        for members in terms:
            count = sum(len(groups[number]) for number in members)
            for name in self.names:
                difference = sum(made[number][name] for number in members) / count - wanted[name]
                is_mse = self.metric == "mse"
                loss = loss + (difference.square() if is_mse else difference.abs()).sum()
                slope = (2 * difference if is_mse else difference.sign()) / count
                for number in members:
                    directions[number][name] = directions[number][name] + slope
        gradients: list[Tensor | None] = [None] * len(groups)
        for number in live:
            images = groups[number]
            labels = label.expand(len(images))
            gradients[number] = self.image_gradient(images, directions[number], matched, weights, labels)
        return loss, gradients


class FeatureDistances:
    """Squared distances of the mean features of real images from those of each subset of the condensed ones (MDC).

    layer: the module of the network whose input is the features. Raises ValueError if there is no such module.
    """

    def __init__(self, net: nn.Module, layer: str):
        modules = dict(net.named_modules())
        if layer not in modules:
            raise ValueError(f"recover.gradients.layer {layer!r} is no module of the network: {', '.join(modules)}")
        self.net, self.module = net, modules[layer]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """[N, ...] of images [N, 3, S, S]."""
        kept: list[Tensor] = []
        handle = self.module.register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0]))
        self.net(images)
        handle.remove()
        return kept[0]

    def __call__(self, real: Tensor, tiles: Tensor, levels: Tensor, num_images: int) -> Tensor:
        """Of the subsets 1 ... num_images - 1, float32 [num_images - 1]; levels: int64 [D], as of `Formation`."""
        wanted, found = self.features(real).mean(0), self.features(tiles)
        sums = found.new_zeros(num_images, *found.shape[1:]).index_add_(0, levels - 1, found).cumsum(0)
        counts = torch.zeros(num_images, device=found.device).index_add_(0, levels - 1, torch.ones_like(levels).float())
        means = sums / counts.cumsum(0).clamp(min=1).view(-1, *[1] * (found.dim() - 1))
        return (means[:-1] - wanted).square().flatten(1).sum(1)
