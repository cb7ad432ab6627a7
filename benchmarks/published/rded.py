"""RDED: the scoring and stitching of a class, as synthesize/main.py does it."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import torch

from .isolation import on_device
from .peer import Setting, Step, load, on_cpu
from .real_images import write_class
from .repository import RDED as RDED_REPOSITORY

FACTOR, CROPS, WORKERS = 2, 5, 4


class RDED:
    """init_images for one class: files read and cropped, crops scored, the best of each image kept, stitched.

    Adapted: the class's images are the given ones, as JPEG files; `ipc` mosaics of 2 x 2 crops, or as many as these
    images suffice for; at most as many loader processes as cores; without nn.DataParallel; mosaics are not saved.
    torchvision's check of downloaded weights, which the import turns off, is turned on again.
    """

    repository = RDED_REPOSITORY
    what = "init_images, one class"

    def prepare(self, folder: Path, setting: Setting) -> Step:
        from torchvision.models._api import WeightsEnum

        checked = WeightsEnum.get_state_dict
        try:
            (module,) = load(folder, ["synthesize.main"], setting, argv=["--factor", str(FACTOR)])
        finally:
            WeightsEnum.get_state_dict = checked
        net, train = setting.frozen(), write_class(setting) / "train"
        workers = min(WORKERS, len(os.sched_getaffinity(0)))
        arguments = Namespace(
            classes=range(1),
            mipc=setting.count,
            train_dir=str(train),
            num_crop=CROPS,
            input_size=setting.size,
            factor=FACTOR,
            workers=workers,
            ipc=mosaics_of(setting),
        )
        module.tqdm = lambda batches: batches
        module.save_images = lambda *_: None

        def advance() -> None:
            with torch.no_grad(), on_device(setting.device):
                module.init_images(arguments, net)

        changes = ["no DataParallel", "mosaics are not saved"]
        changes += [f"{workers} loader processes in place of {WORKERS}"] * (workers < WORKERS)
        return Step(advance, (*changes, *on_cpu(setting)))


def mosaics_of(setting: Setting) -> int:
    """How many mosaics are made of the setting's images: ipc of them, or as many as there are images for."""
    return max(1, min(setting.ipc, setting.count // FACTOR**2))
