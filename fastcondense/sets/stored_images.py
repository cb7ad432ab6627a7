"""The images of a condensed set as they lie in its shards: what is held in memory does not grow with the set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..data.jobs import Job
from ..loaders.reading import reading


def shard_path(folder: Path, job: int) -> Path:
    return folder / f"shard-{job:05d}.safetensors"


@dataclass(frozen=True)
class StoredImages:
    """Which image of which shard is which: uint8 [classes, ipc, 3, S, S], read when they are asked for."""

    paths: tuple[Path, ...]
    shards: Tensor
    """int32 [classes, ipc]: places in `paths`."""
    rows: Tensor
    """int32 [classes, ipc]: of the images in their shards."""
    shape_of_one: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.shards.shape, *self.shape_of_one)

    def cells(self, labels: Tensor, slots: Tensor) -> StoredImages:
        """Those of other classes and slots, int64 [m, n] each."""
        return StoredImages(self.paths, self.shards[labels, slots], self.rows[labels, slots], self.shape_of_one)

    def read(self) -> Tensor:
        """All of them; one shard after another is open. Raises ValueError that names one which cannot be read."""
        images = torch.empty(self.shape, dtype=torch.uint8)
        for number in self.shards.unique().tolist():
            is_here = self.shards == number
            path = self.paths[number]
            with reading(path), safe_open(str(path), "pt") as file:
                images[is_here] = file.get_tensor("images")[self.rows[is_here].long()]
        return images


def read_cells(path: Path) -> tuple[tuple[int, ...], Tensor, Tensor]:
    """The shape of one image of a shard, and the class and the slot of each, int64 [n]; no pixels are read.

    Raises ValueError that names a shard which is damaged.
    """
    with reading(path), safe_open(str(path), "pt") as file:
        images, classes, slots = file.get_slice("images"), file.get_tensor("classes"), file.get_tensor("slots")
        count, *shape = images.get_shape()
        is_sound = images.get_dtype() == "U8" and len(shape) == 3 and shape[0] == 3
        for cells in (classes, slots):
            is_sound = is_sound and cells.dtype == torch.int64 and cells.shape == (count,) and bool((cells >= 0).all())
        if not is_sound:
            raise ValueError("it is no shard of images, their classes and slots")
    return tuple(shape), classes, slots


def find_images(folder: Path, made: Sequence[Job], num_classes: int, ipc: int) -> StoredImages:
    """The first `ipc` slots among those of the jobs. Raises ValueError if a job is missing or damaged."""
    shards, rows = (torch.full((num_classes, ipc), -1, dtype=torch.int32) for _ in range(2))
    paths: list[Path] = []
    shape: tuple[int, ...] = ()
    for job in made:
        if job.first_slot >= ipc:
            continue
        path = shard_path(folder, job.index)
        if not path.exists():
            raise ValueError(f"{folder} is not finished: {path.name} is missing; run recover again")
        one, classes, slots = read_cells(path)
        if shape not in ((), one) or not bool((classes < num_classes).all()):
            raise ValueError(f"{path} has images of another size or of other classes than the shards before")
        shape, wanted = one, torch.nonzero(slots < ipc)[:, 0]
        cells = classes[wanted], slots[wanted]
        shards[cells], rows[cells] = len(paths), wanted.int()
        paths.append(path)
    if not paths or bool((shards < 0).any()):
        raise ValueError(f"{folder} does not hold {ipc} images of each of {num_classes} classes")
    return StoredImages(tuple(paths), shards, rows, shape)
