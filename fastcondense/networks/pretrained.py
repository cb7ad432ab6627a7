"""Pretrained networks of torchvision and timm, which download their weights once, and what to do where they cannot."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from torch import nn

from .. import vision
from ..recipe.settings import PixelStatistics

_STATISTICS = "pixel_statistics"  # an attribute of pretrained networks
_AUXILIARY_HEADS = ("googlenet", "inception_v3")
"""Networks that, in training mode, give more than logits unless they are told not to."""


def of_torchvision(name: str, num_classes: int, weights: str | None) -> nn.Module:
    """The network, untrained, or with the weights of that name or torchvision's own choice, "default".

    Raises ValueError for weights that there are not, and for those that can neither be found nor downloaded.
    """
    models, options = vision.torchvision.models, {"aux_logits": False} if name in _AUXILIARY_HEADS else {}
    if weights is None:
        options |= {"init_weights": True} if options else {}  # torchvision's default, of which it warns
        return models.get_model(name, weights=None, num_classes=num_classes, **options)
    known: Any = models.get_model_weights(name)
    entry = known["DEFAULT" if weights == "default" else nearest(weights, [one.name for one in known], name)]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    with _downloading(f"torchvision/{name}", str(entry.url), f"put it into {folder} under its own name"):
        net = models.get_model(name, weights=entry, **options)
    transform = entry.transforms()
    setattr(net, _STATISTICS, (tuple(transform.mean), tuple(transform.std)))
    return net


def of_timm(name: str, weights: str) -> nn.Module:
    """The network with the weights of that tag, or with timm's own choice, "default". Raises ValueError as above."""
    timm = vision.timm
    full = name if weights == "default" else f"{name}.{nearest(weights, _tags(name), f'timm/{name}')}"
    if not (config := timm.get_pretrained_cfg(full)) or not (config.hf_hub_id or config.url):
        raise ValueError(f"timm/{name} has no pretrained weights; use train or a checkpoint file")
    url = f"https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors"
    place = f"copy the cache of a machine that has it to {HF_HUB_CACHE}"
    with _downloading(f"timm/{name}", url if config.hf_hub_id else str(config.url), place):
        net = timm.create_model(full, pretrained=True)
    found: Any = net.pretrained_cfg
    setattr(net, _STATISTICS, (tuple(found["mean"]), tuple(found["std"])))
    return net


def pixel_statistics(net: nn.Module) -> PixelStatistics | None:
    """Mean and deviation of the pixels that a pretrained network of torchvision or timm was trained on, as its weights'
    configuration says; None if nothing says it, or if the weights are others.
    """
    return getattr(net, _STATISTICS, None)


def nearest(name: str, known: Iterable[str], source: str) -> str:
    """The name, which is known. Raises ValueError that gives the nearest one if it is not."""
    names = list(known)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, 1, 0.0)
    raise ValueError(f"{source} has no {name!r}" + (f"; the nearest is {near[0]!r}" if near else ""))


def _tags(name: str) -> list[str]:
    return [full.partition(".")[2] for full in vision.timm.list_pretrained(f"{name}.*")]


@contextlib.contextmanager
def _downloading(network: str, url: str, place: str) -> Iterator[None]:
    """A block that may download; says what to do where it cannot."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"the weights of {network} cannot be downloaded ({' '.join(str(error).split())}): get {url} where there is "
            f"a network, and {place}, or name the file here: --squeeze.weights FILE"
        ) from error
