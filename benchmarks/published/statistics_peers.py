"""G-VBSM and EDC: the loops of their recover scripts for ImageNet-1k, with statistics of every convolution."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from .isolation import Overlay, silent
from .peer import FOR_EVER, Setting, Step, load, recover_loop
from .repository import EDC as EDC_REPOSITORY
from .repository import GVBSM as GVBSM_REPOSITORY

PATCH = 16
RECOVER = "Branch_full_ImageNet_1k/recover"


class StatisticsFiles:
    """Files of statistics that are not there: `load` gives arrays of the shapes that a network's layers need.

    All means are 0 and all variances 1. The scripts read such files before their loop begins, 40 000 of them for a
    ResNet-18 in EDC; what a step costs does not depend on what they hold.
    """

    def __init__(self, net: nn.Module, size: int):
        self.shapes: dict[str, tuple[int, int]] = {}
        """Channels and patches of each layer's input, by the layer's name."""
        hooks = []
        for name, module in net.named_modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                hooks.append(module.register_forward_hook(self._measure(name)))
        with torch.no_grad():
            net(torch.zeros(1, 3, size, size, device=next(net.parameters()).device))
        for hook in hooks:
            hook.remove()

    def _measure(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor], torch.Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor], __: torch.Tensor) -> None:
            _, channels, height, width = inputs[0].shape
            self.shapes[name] = channels, -(-height // PATCH) * -(-width // PATCH)

        return hook

    def load(self, path: str) -> dict[str, np.ndarray]:
        """What the file `.../<class of the network>=<layer>/running.npz` would hold."""
        channels, patches = self.shapes[Path(path).parent.name.partition("=")[2]]
        return {
            "running_dd_mean": np.zeros(channels, np.float32),
            "running_dd_var": np.ones(channels, np.float32),
            "running_patch_mean": np.zeros(patches, np.float32),
            "running_patch_var": np.ones(patches, np.float32),
        }

    def serve(self, module: ModuleType) -> None:
        """Lets the hooks of a script find these files."""
        paths = Overlay(os.path, exists=lambda _: True)
        for hook in (module.BNFeatureHook, module.ConvFeatureHook):
            names = hook.__init__.__globals__
            names["os"], names["np"] = Overlay(os, path=paths, makedirs=silent), Overlay(np, load=self.load)


def _join(**options: Any) -> None:
    """init_process_group, unless another peer has called it."""
    if not dist.is_initialized():
        dist.init_process_group(**options)


def _step(module: ModuleType, setting: Setting, **arguments: Any) -> Step:
    """main_worker of rank 0 of 1, which matches one network, the given one."""
    net = setting.frozen()
    StatisticsFiles(net, setting.size).serve(module)
    module.validate = silent
    module.dist = Overlay(dist, init_process_group=_join)
    options = Namespace(
        rank=0,
        world_size=1,
        dist_backend="nccl" if setting.device.type == "cuda" else "gloo",
        dist_url=f"file://{setting.scratch.absolute()}/group",
        batch_size=setting.count,
        iteration=FOR_EVER,
        ipc_number=setting.ipc,
        jitter=setting.jitter,
        statistic_path=str(setting.scratch),
        first_multiplier=10.0,
        drop_rate=0.0,
        tv_l2=0.0,
        l2_scale=0.0,
        nuc_norm=1.0,
        tau=4.0,
        average_grad_ratio=0.0,
        store_best_images=False,
        **arguments,
    )

    def run() -> None:
        module.main_worker(0, 1, options, [net], nn.Identity(), list(range(setting.ipc)))

    step = recover_loop(
        module,
        setting,
        run,
        "one teacher, the given network",
        "no verifier",
        "statistics to match are constants, not files",
    )
    leave = step.close

    def close() -> None:
        leave()
        if dist.is_initialized():
            dist.destroy_process_group()

    step.close = close
    return step


class GVBSM:
    """main_worker with the arguments of recover.sh: statistics of BatchNorms and convolutions, and DD of each class.

    Adapted: the loop is paused where it sets its learning rate; it begins with the given images; one teacher, the given
    network, in place of four in turns; the statistics to match are constants of the right shapes; no verifier or
    prints; a process group of one, gloo on the CPU; other sizes and the CPU as `recover_loop` says.
    """

    repository = GVBSM_REPOSITORY
    what = "main_worker, one iteration"

    def prepare(self, folder: Path, setting: Setting) -> Step:
        script = "data_synthesis_with_svd_with_db_with_all_statistic"
        (module,) = load(folder / RECOVER, [script], setting)
        return _step(module, setting, lr=0.1, r_loss=0.01, training_momentum=0.4)


class EDC:
    """main_worker with the arguments of recover.sh: global and category statistics of BatchNorms and convolutions.

    Adapted as G-VBSM is (one of five teachers), and it begins with the given images in place of files of mosaics.
    """

    repository = EDC_REPOSITORY
    what = "main_worker, one iteration"

    def prepare(self, folder: Path, setting: Setting) -> Step:
        (module,) = load(folder / RECOVER, ["recover"], setting)
        return _step(
            module,
            setting,
            lr=0.05,
            r_loss=0.1,
            training_momentum=0.8,
            category_aware="global",
            flatness_weight=1.0,
            ema_alpha=0.9,
            initial_img_dir="None",
            aux_teacher=[setting.network],
        )
