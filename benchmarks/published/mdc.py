"""MDC, which is IDC with a learnable subset: the loop of condense_reg.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from .isolation import Overlay, on_device, silent
from .paused import PausedLoop
from .peer import Setting, Step, load, on_cpu
from .real_images import pixels
from .repository import MDC as MDC_REPOSITORY

NUM_CLASSES = 10
IPC, FACTOR = 10, 2
UNUSED = ("aim", "efficientnet_pytorch", "fast_pytorch_kmeans")


class RealImages:
    """What the script's loader of data returns: uint8 images, whose classes take turns."""

    nclass = NUM_CLASSES

    def __init__(self, images: Tensor):
        self.images = images
        self.targets = [number % NUM_CLASSES for number in range(len(images))]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return self.images[number], self.targets[number]  # past the end: IndexError


class Tracker:
    """Stands in for the script's experiment tracker, as if there were none."""

    def __bool__(self) -> bool:
        return False

    def track(self, *_: Any, **__: Any) -> None:
        """Keeps nothing."""


class MDC:
    """condense for CIFAR-10 with the README's arguments: a class's step, from real batch to updated images.

    The step measured is that with a subset, of one image a class, beside the whole set, as in the first 100 iterations.
    Adapted: the loop is paused where a class's step ends; the real images are the given ones; one sweep over the
    classes an iteration and no training of the network between them, so that every step is alike; no evaluation or
    tracking; stand-ins for packages that the step never calls (aim, efficientnet_pytorch, fast_pytorch_kmeans).
    The network is the script's own, ConvNet-3 with instance normalisation.
    """

    repository = MDC_REPOSITORY
    what = "condense, a class's step"

    def prepare(self, folder: Path, setting: Setting) -> Step:
        if setting.size != 32:
            raise ValueError(f"its networks for CIFAR take images of 32 pixels, not {setting.size}")
        argv = ["--reproduce", "-d", "cifar10", "-f", str(FACTOR), "--ipc", str(IPC), "--adaptive_reg", "True"]
        scripts = ["condense_reg", "argument"]
        module, found = load(folder, scripts, setting, argv=[*argv, "--inner_loop", "1"], absent=UNUSED)
        found.args.n_data = 0
        found.args.save_dir = str(setting.scratch)
        module.__dict__.update(args=found.args, logger=silent, run=Tracker(), save_img=silent, Text=silent)
        real = RealImages(pixels(setting.images))
        module.__dict__["load_resized_data"] = lambda _: (real, None)
        module.Synthesizer.test = silent
        stamps = module.utils.TimeStamp

        def loop(pause: Callable[[], None]) -> None:
            class Stamps(stamps):
                """Pauses after each step, but for those of the first iteration, before a subset is chosen."""

                steps = 0

                def stamp(self, name: str = "") -> None:
                    super().stamp(name)
                    self.steps += name == "backward"
                    if name == "backward" and self.steps >= NUM_CLASSES:
                        pause()

            module.utils = Overlay(module.utils, TimeStamp=Stamps)
            module.condense(found.args, silent)

        paused = PausedLoop(loop, lambda: on_device(setting.device))
        changes = ("real images are the given ones", "no training of the network between steps", "no tracking")
        return Step(paused, (*changes, *on_cpu(setting)), paused.close)
