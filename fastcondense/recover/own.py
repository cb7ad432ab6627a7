"""Initial images and baselines that are a function of the user's: of the real images of a class, as tensors."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.jobs import Job
from ..data.noise import InitialImages
from ..data.real import squares
from ..rng import Stream
from ..run import Run
from ..tensor_files import read_kept, write_tensors
from ..user_functions import load_function, source_sha256
from ..workers.work import Items, shared


def own_start(run: Run, reference: str) -> InitialImages:
    """The initial images that a function gives for each place of a class: function(images, slot).

    images: all training images of the class, uint8 [N, 3, S, S], as the evaluation transform sees them; it gives the
    levels from 0 to 255 of one image, [3, S, S], which are rounded. torch's random numbers depend on (seed, class,
    slot) alone, so the first images of a class do not depend on how many are wanted. Classes are shared by the workers,
    and kept in the run's folder. Raises ValueError for what is no such image.
    """
    recipe = run.recipe
    function = [reference, source_sha256(reference, "recover.initial.kind")]
    folder = run.folder_of("initial", seed=recipe.seed, function=function)
    labels = range(len(run.real.classes))
    work = Items("starts", folder, labels, lambda label: len(_kept(run, folder, label)) >= recipe.ipc)
    if not all(map(work.is_finished, labels)):
        start = load_function(reference, "recover.initial.kind")
        for label, _ in shared(run.log, f"initial images of {reference}", work):
            _make(run, start, reference, folder, label)
    of_class = functools.lru_cache(maxsize=32)(functools.partial(_kept, run, folder))

    def images(job: Job) -> Tensor:
        pairs = zip(job.classes().tolist(), job.slots().tolist(), strict=True)
        return run.normalize(torch.stack([of_class(label)[slot] for label, slot in pairs]).to(run.device))

    return images


def own_baseline(run: Run, reference: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` images of every class, by class, that a function gives: function(images, count), uint8 [count, 3, S, S].

    images as in `own_start`; torch's random numbers depend on (seed, class). Returns uint8 [classes * count, 3, S, S]
    and int64 labels. Raises ValueError for what are no such images.
    """
    choose, made = load_function(reference, "evaluate.baselines"), []
    for label in range(len(run.real.classes)):
        with Stream(seed, "baselines/own").torch_generator(label):
            found = choose(_of_class(run, label), count)
        made.append(_checked(run, found, (count,), f"evaluate.baselines {reference!r}"))
    return torch.cat(made), torch.arange(len(made)).repeat_interleave(count)


def _make(run: Run, start: Any, reference: str, folder: Path, label: int) -> None:
    """Writes the images of a class; those that are there stay."""
    made, pixels = list(_kept(run, folder, label)), _of_class(run, label)
    for slot in range(len(made), run.recipe.ipc):
        with Stream(run.recipe.seed, "initial/own").torch_generator(label, slot):
            made.append(_checked(run, start(pixels.clone(), slot), (), f"recover.initial.kind {reference!r}"))
    write_tensors(_path(folder, label), {"images": torch.stack(made)}, {"class": run.real.classes[label]})


def _of_class(run: Run, label: int) -> Tensor:
    """The training images of a class that can be read, uint8 [N, 3, S, S] on the host."""
    split = run.real.train.take(run.real.train.of_class(label))
    pixels, _ = squares(split, run.recipe.dataset, run.device)
    run.report_skipped(split)
    return pixels


def _checked(run: Run, images: Any, count: tuple[int, ...], source: str) -> Tensor:
    """Levels as uint8 on the host. Raises ValueError for another shape, and for what are no levels."""
    size = run.recipe.dataset.image_size
    shape = (*count, 3, size, size)
    if not isinstance(images, Tensor) or images.shape != shape:
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"{source} must give a tensor {list(shape)} of levels from 0 to 255, got {found}")
    levels = images.detach().cpu().float()
    low, high = levels.aminmax() if levels.numel() else (math.inf, -math.inf)
    is_share = images.is_floating_point() and 0 < high <= 1  # of white
    if not (0 <= low and high <= 255) or is_share:
        raise ValueError(f"{source} must give levels from 0 to 255, got {float(low):g} to {float(high):g}")
    return levels.round().to(torch.uint8)


def _kept(run: Run, folder: Path, label: int) -> Tensor:
    """The images of a class that are made already, uint8 [n, 3, S, S]."""
    path, size = _path(folder, label), run.recipe.dataset.image_size
    if not path.exists():
        return torch.zeros(0, dtype=torch.uint8)
    return read_kept(path, {"images": (torch.uint8, [-1, 3, size, size])})["images"]


def _path(folder: Path, label: int) -> Path:
    return folder / f"class-{label:05d}.safetensors"
