"""A network as an encoder: its classifier found, a copy that follows it, and BatchNorms apart for its parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import zoo


def classifier_name(architecture: str) -> str:
    """Name of the nn.Linear that makes the logits: what differs between networks of two and of three classes.

    Raises ValueError if the logits are not made by one nn.Linear.
    """
    small, large = (zoo.build(architecture, count) for count in (2, 3))
    others = dict(large.named_parameters())
    names = {name.rpartition(".")[0] for name, p in small.named_parameters() if p.shape != others[name].shape}
    if len(names) != 1 or not isinstance(small.get_submodule(next(iter(names))), nn.Linear):
        raise ValueError(
            f"a linear probe needs an architecture whose logits are made by one nn.Linear; {architecture} makes them "
            f"by {', '.join(sorted(names)) or 'none'}"
        )
    return names.pop()


def feature_size(net: nn.Module, classifier: str) -> int:
    """Length of the vectors that the classifier takes."""
    module = net.get_submodule(classifier)
    assert isinstance(module, nn.Linear)
    return module.in_features


@torch.no_grad()
def follow(copied: nn.Module, net: nn.Module, decay: Tensor) -> None:
    """copied = decay copied + (1 - decay) net, parameter by parameter; buffers (BatchNorm's) are each network's own.

    decay: float32 [] on the networks' device, so that schedules are not read by the host.
    """
    for mine, new in zip(copied.parameters(), net.parameters(), strict=True):
        mine.lerp_(new, 1 - decay)


def encode(net: nn.Module, views: Tensor, parts: int) -> Tensor:
    """net(views), float32, where each of so many parts of the batch has its own BatchNorm statistics.

    views: [N, 3, S, S]. As on so many GPUs; a part has at least two views.
    """
    views = views.contiguous(memory_format=torch.channels_last)
    parts = max(1, min(parts, len(views) // 2))
    return torch.cat([net(part) for part in torch.tensor_split(views, parts)]).float()
