"""How far the loaders' pixels are apart on real images, and how far that moves a teacher's accuracy.

    fastcondense bench loader-parity --data DIR [--teacher FILE]

--data: a folder of <class>/<image>; it is packed as it is for FFCV. --teacher: FD-MobileNet 0.5 for ImageNet-1k
(arXiv 1802.03750), whose classes are wnids, as the folders' names must be then.

Each line of the result is one loader: mean and largest difference to Pillow's pixels (levels of 256; of the worst image
too) for training and evaluation crops, and the teacher's top-1 among all 1000 classes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from session import Session
from torch import Tensor, nn

from fastcondense.data.real import Normalization
from fastcondense.loaders.class_folders import index_folder
from fastcondense.loaders.source import Centered, Cut, Faults, Loader, Windowed
from fastcondense.networks import zoo
from fastcondense.recipe.settings import Dataset
from fastcondense.recipe.shared import Views
from fastcondense.rng import Stream
from fastcondense.teachers.weights import load_weights, state_dict
from fastcondense.tensor_files import read_checkpoint
from fastcondense.views.windows import windows
from fastcondense.vision import timm
from loaders import is_usable, our_loaders, packed

CPU = torch.device("cpu")
QUICK: dict[str, int] = {"images": 16}
ROOT = Path(__file__).resolve().parents[1]


def pixels_of(loader: Loader, cut: Cut) -> Tensor:
    batches = np.split(np.arange(len(loader)), range(64, len(loader), 64))
    return torch.cat([pixels for pixels, _ in loader.batches(batches, cut, Faults())])


@torch.no_grad()
def top1(teacher: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    normalize = Normalization.of(Dataset(), CPU)
    logits = torch.cat([teacher(normalize(part)) for part in pixels.split(64)])
    return 100 * float((logits.argmax(1) == labels).float().mean())


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--resize", type=int, default=256, help="short side before the evaluation crop")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, help="the first so many of every class; default: all")


def run(session: Session, options: argparse.Namespace) -> None:
    files, label_numbers, classes = index_folder(options.data)
    if options.images is not None:
        places = [np.flatnonzero(label_numbers == label)[: options.images] for label in range(len(classes))]
        files, label_numbers = [files[k] for k in np.concatenate(places)], label_numbers[np.concatenate(places)]
    stream = Stream(0, "benchmark")
    cuts: dict[str, Cut] = {
        "train": Windowed(224, lambda ids, heights, widths: windows(stream, Views(), ids, 0, heights, widths)),
        "evaluate": Centered(224, options.resize),
    }
    if options.teacher:
        wnids = timm.data.ImageNetInfo().label_names()
        labels = torch.tensor([wnids.index(name) for name in classes])[torch.from_numpy(label_numbers)]
        teacher = zoo.build(f"{ROOT}/tests/architectures.py:fd_mobilenet", 1000)
        load_weights(teacher, state_dict(read_checkpoint(options.teacher), options.teacher), options.teacher)
        teacher.eval()
    with tempfile.TemporaryDirectory() as folder:
        truth: dict[str, Tensor] = {}
        usable = {name: is_usable(session, None, name) for name in ("dali", "ffcv")}
        betons = [packed(files, options.data, Path(folder), options.workers)] if usable["ffcv"] else []
        loaders = our_loaders(files, options.workers, CPU, usable["dali"], betons)
        for name, loader in ((name.partition(" ")[0], loader) for name, loader in loaders.items()):
            line: dict[str, Any] = {"data": "/".join(options.data.parts[-2:]), "images": len(files)}
            line |= {"resize": options.resize}
            for kind, cut in cuts.items():
                pixels = pixels_of(loader, cut)
                distance = (pixels.float() - truth.setdefault(kind, pixels).float()).abs()
                line[kind] = {
                    "mean": round(float(distance.mean()), 4),
                    "mean_of_worst_image": round(float(distance.mean((1, 2, 3)).max()), 4),
                    "largest": int(distance.max()),
                }
            if options.teacher:  # `pixels` are those of the evaluation
                line["top1"] = round(top1(teacher, pixels, labels), 3)
            print(name, line, flush=True)
            session.add("pixels", name, shapes=[(len(files), 3, 224, 224)], dtype="uint8", **line)
