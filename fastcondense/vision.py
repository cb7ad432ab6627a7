"""torchvision and timm, importable beside a CPU build of torch too. Import both through this module only.

The registry's torchvision is the CUDA build. Beside a CPU torch its import fails, because the operators of its compiled
library are missing; with the schemas of the two that are referenced at import time, all of its Python code works.
"""

from __future__ import annotations

import sys

import torch


def _import_torchvision() -> torch.library.Library | None:
    try:
        import torchvision

        return None
    except RuntimeError:
        if torch.version.cuda is not None:
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401

    return library


_library = _import_torchvision()  # alive as long as the process: its schemas vanish with it

import timm  # noqa: E402
import torchvision  # noqa: E402
import torchvision.transforms.v2  # noqa: E402

__all__ = ["timm", "torchvision"]
