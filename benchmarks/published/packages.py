"""Packages that evaluate condensed sets, rethinkdc and ddranking: an epoch of a student with soft labels.

They are installed by whoever runs the benchmark; one that is not installed is absent.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.metadata
import importlib.util
import io
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import torch
from PIL import Image
from torch import Tensor, nn

from fastcondense.vision import torchvision

from .isolation import on_device, silent, stand_in
from .paused import PausedLoop
from .peer import FOR_EVER, Step, Unavailable, begun
from .real_images import MEAN, STD
from .repository import Absent


@dataclass(frozen=True)
class Epoch:
    """What every variant trains: a student with the soft labels of a teacher, the same network."""

    net: nn.Module
    pixels: Tensor
    """The condensed images, uint8 [N, 3, S, S]; their classes take turns."""
    num_classes: int
    batch_size: int
    temperature: float
    workers: int
    device: torch.device
    scratch: Path

    @property
    def labels(self) -> Tensor:
        return torch.arange(len(self.pixels)) % self.num_classes


class Package(Protocol):
    """An adapter of an installed package. `what` says in a line which of its lines run."""

    name: str
    what: str

    def prepare(self, epoch: Epoch) -> Step:
        """Its epoch, which can be run again and again."""


def version(package: Package) -> str:
    """Name and version. Raises Absent if it is not installed, or if what it needs is not."""
    if importlib.util.find_spec(package.name) is None:
        raise Absent(f"the package {package.name} is not installed")
    return f"{package.name} {importlib.metadata.version(package.name)}"


def prepared(package: Package, epoch: Epoch) -> Step | Unavailable:
    """The package's epoch."""

    def prepare() -> Step:
        version(package)
        return package.prepare(epoch)

    return begun(prepare)


class DDRanking:
    """ddranking's train_one_epoch with the labels of a teacher ("M"), its KL loss, CutMix and AdamW.

    Adapted: the images are normalised tensors, in a DataLoader of its TensorDataset, which crops nothing: so neither
    decoding nor crops are in its time. It does not print.
    """

    name = "ddranking"
    what = "train_one_epoch, labels of a teacher"

    def prepare(self, epoch: Epoch) -> Step:
        with contextlib.redirect_stdout(io.StringIO()):
            ddranking = importlib.import_module("ddranking")
            utils = importlib.import_module("ddranking.utils")
        teacher, student = (copy.deepcopy(epoch.net).to(epoch.device) for _ in range(2))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        images = utils.TensorDataset((epoch.pixels / 255 - mean) / std, epoch.labels)
        loader = torch.utils.data.DataLoader(images, epoch.batch_size, shuffle=True, num_workers=epoch.workers)
        optimizer = utils.get_optimizer("adamw", student, 1e-3, 0.01, (0.9, 0.999))
        loss, mix = ddranking.KLDivergenceLoss(temperature=epoch.temperature), ddranking.Cutmix({"beta": 1.0})
        teachers = [teacher.eval().requires_grad_(False)]

        def advance() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                utils.train_one_epoch(0, student, loader, loss, optimizer, "M", mix, teachers, device=epoch.device)

        return Step(advance, ("images are tensors in memory and are not cropped", "does not print"))


class RethinkDC:
    """rethinkdc's main with its standard soft labels, from one epoch's end to the next one's: all but every 50th train.

    Adapted: the given images as JPEG files; the given network in place of a downloaded teacher and a new student; its
    arguments given, not parsed; its image folder is spared an argument of newer torchvisions, which it does not know;
    nothing is reported to Weights & Biases, at whose call after an epoch its loop is paused; it does not print; at most
    `workers` loader processes. Where there is no GPU, which it asks for, it is told that there is one, and "cuda" means
    the CPU.
    """

    name = "rethinkdc"
    what = "main, an epoch of training"

    def prepare(self, epoch: Epoch) -> Step:
        module = importlib.import_module("rethinkdc.train_KD")
        parts = [importlib.import_module(f"rethinkdc.{name}") for name in ("imagenet_ipc", "utils", "utils_fkd")]
        for one in (module, *parts):
            one.print = silent
        arguments, folder = self._arguments(epoch), parts[0].ImageFolderIPC
        list_images = folder.make_dataset

        def make_dataset(*paths: Any, **options: Any) -> list[tuple[str, int]]:
            options.pop("allow_empty", None)
            return list_images(*paths, **options)

        def loop(pause: Callable[[], None]) -> None:
            setup = contextlib.ExitStack()

            def log(metrics: dict[str, Any]) -> None:
                setup.close()
                if "train/loss" in metrics:
                    pause()

            with setup:
                tracker = stand_in("wandb")
                tracker.__dict__.update(login=silent, init=silent, Settings=silent, log=log)
                crop, size = torchvision.transforms.RandomResizedCrop, epoch.pixels.shape[-1]
                crops = {"RandomResizedCrop": lambda _, **options: crop(size, **options)}
                gpu = setup.enter_context(contextlib.ExitStack())
                setup.enter_context(mock.patch.dict(sys.modules, wandb=tracker))
                setup.enter_context(mock.patch.dict(vars(torchvision.transforms), crops))
                setup.enter_context(mock.patch.dict(vars(torchvision.models), given=self._network(epoch, gpu)))
                setup.enter_context(mock.patch.object(module, "get_args", lambda: arguments))
                setup.enter_context(mock.patch.object(folder, "make_dataset", staticmethod(make_dataset)))
                show = mock.patch.object(parts[1], "print_args_rich", self._pretend(epoch, gpu))
                setup.enter_context(show)
                module.main()

        paused = PausedLoop(loop, lambda: on_device(epoch.device))
        changes = [
            "images as JPEG files, the given network",
            "no Weights & Biases",
            f"{epoch.workers} loader processes",
        ]
        if epoch.device.type != "cuda":
            changes.append(f'told that there is a GPU; "cuda" means {epoch.device.type}')
        return Step(paused, tuple(changes), paused.close)

    @staticmethod
    def _network(epoch: Epoch, gpu: contextlib.ExitStack) -> Callable[..., nn.Module]:
        """Makes student and teacher; by then its question whether there is a GPU has been answered."""

        def make(**_: Any) -> nn.Module:
            gpu.close()
            return copy.deepcopy(epoch.net)

        return make

    @staticmethod
    def _pretend(epoch: Epoch, gpu: contextlib.ExitStack) -> Callable[[Namespace], None]:
        """In the place of what is called right before it asks for a GPU."""

        def pretend(_: Namespace) -> None:
            if epoch.device.type != "cuda":
                gpu.enter_context(mock.patch.object(torch.cuda, "is_available", lambda: True))

        return pretend

    @staticmethod
    def _arguments(epoch: Epoch) -> Namespace:
        folder = epoch.scratch / "rethinkdc"
        array = epoch.pixels.permute(0, 2, 3, 1).cpu().numpy()
        for number, label in enumerate(epoch.labels.tolist()):
            place = folder / "train" / f"{label:05d}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array[number]).save(place / f"{number:06d}.jpg")
        return Namespace(
            train_dir=str(folder / "train"),
            val_dir=str(folder / "train"),
            output_dir=str(folder / "out"),
            hf_cache_dir=None,
            ipc=-(-len(epoch.pixels) // epoch.num_classes),
            batch_size=epoch.batch_size,
            workers=epoch.workers,
            model="given",
            teacher_model="given",
            temperature=epoch.temperature,
            cos=True,
            adamw_lr=1e-3,
            adamw_weight_decay=0.01,
            sgd_setting=False,
            hard_label=False,
            gradient_accumulation_steps=1,
            mode="fkd_save",
            mix_type="cutmix",
            cutmix=1.0,
            mixup=0.8,
            start_epoch=1,
            epochs=FOR_EVER,
            wandb_project="",
            wandb_api_key=None,
        )
