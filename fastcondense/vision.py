"""torchvision and timm, as `vision.torchvision` and `vision.timm`: imported when first asked for, which takes seconds.

They are importable beside a CPU build of torch too. The registry's torchvision is the CUDA build. Beside a CPU torch
its import fails, because the operators of its compiled library are missing; with the schemas of the two that are
referenced at import time, all of its Python code works.
"""

from __future__ import annotations

import functools
import importlib
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    import timm
    import torchvision

__all__ = ["timm", "torchvision"]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _import_torchvision()  # timm imports it too
    if name == "timm" and find_spec("timm") is None:
        raise ValueError("networks timm/NAME need a library that is not installed: pip install 'fastcondense[timm]'")
    return importlib.import_module(name)


def stochastic_depth() -> tuple[type[nn.Module], ...]:
    """Layers that leave out whole branches in training: those of the libraries that are imported. No network without
    them has any."""
    found: list[type[nn.Module]] = []
    if "torchvision.ops" in sys.modules:
        found.append(sys.modules["torchvision.ops"].StochasticDepth)
    if "timm.layers" in sys.modules:
        found.append(sys.modules["timm.layers"].DropPath)
    return tuple(found)


@functools.cache
def _import_torchvision() -> torch.library.Library | None:
    """Returns what has to be kept alive: the schemas vanish with it."""
    try:
        importlib.import_module("torchvision.transforms.v2")
        return None
    except RuntimeError:
        if torch.version.cuda is not None:
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("torchvision.transforms.v2")
    return library
