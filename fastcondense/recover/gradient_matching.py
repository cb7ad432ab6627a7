"""How far a network's gradients on condensed images are from those on real ones (IDC), and its features (MDC)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GradientMatching:
    """Matches the gradients of all weights of more than two dimensions; biases, norms and classifiers are left out.

    Images must not see each other: the gradients of the groups of a batch, taken apart, make up those of any union,
    and so a subset costs nothing beside its set. Raises ValueError for a network with BatchNorm.
    """

    def __init__(self, net: nn.Module, metric: Literal["mse", "l1"]):
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()):
            raise ValueError("gradient matching needs a network without BatchNorm, e.g. zoo/convnet3_in")
        self.net, self.metric = net, metric

    def __call__(self, real: Tensor, groups: Sequence[Tensor], label: Tensor, terms: Sequence[Sequence[int]]) -> Tensor:
        """sum_t dist(mean gradient of the real images, mean gradient of the condensed images of term t), a scalar.

        real: [B, 3, S, S]; groups: [b_g, 3, S, S] each; all are of the class `label`, int64 [1]. terms: the numbers of
        the groups that a term consists of. Differentiable in the groups that require a gradient.
        """
        wanted = [gradient / len(real) for gradient in self._gradients(real, label)]
        made = [self._gradients(images, label) for images in groups]
        loss: Tensor = real.new_zeros(())
        for members in terms:
            count = sum(len(groups[number]) for number in members)
            for which, gradient in enumerate(wanted):
                difference = sum(made[number][which] for number in members) / count - gradient
                loss = loss + (difference.square() if self.metric == "mse" else difference.abs()).sum()
        return loss

    def _gradients(self, images: Tensor, label: Tensor) -> Sequence[Tensor]:
        """Gradients of the summed cross-entropy in each weight."""
        weights = [weight for weight in self.net.parameters() if weight.dim() > 2]
        entropy = F.cross_entropy(self.net(images), label.expand(len(images)), reduction="sum")
        return torch.autograd.grad(entropy, weights, create_graph=images.requires_grad)


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
        """Features [N, ...] of images [N, 3, S, S]."""
        kept: list[Tensor] = []
        handle = self.module.register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0]))
        self.net(images)
        handle.remove()
        return kept[0]

    def __call__(self, real: Tensor, tiles: Tensor, levels: Tensor, num_images: int) -> Tensor:
        """Distances of the subsets 1 ... num_images - 1, float32 [num_images - 1]; levels: int64 [D], a Formation's."""
        wanted, found = self.features(real).mean(0), self.features(tiles)
        sums = found.new_zeros(num_images, *found.shape[1:]).index_add_(0, levels - 1, found).cumsum(0)
        counts = torch.zeros(num_images, device=found.device).index_add_(0, levels - 1, torch.ones_like(levels).float())
        means = sums / counts.cumsum(0).clamp(min=1).view(-1, *[1] * (found.dim() - 1))
        return (means[:-1] - wanted).square().flatten(1).sum(1)
