"""The images of a condensed set as they lie in its shards: what is held in memory does not grow with the set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..data.jobs import Job
from ..files import read_tensors


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
            try:
                with safe_open(str(self.paths[number]), "pt") as file:
                    images[is_here] = file.get_tensor("images")[self.rows[is_here].long()]
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{self.paths[number]} cannot be read: {error}") from None
        return images


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
        shard, _ = read_tensors(path, "images", "classes", "slots")
        shape = tuple(shard["images"].shape[1:])
        wanted = torch.nonzero(shard["slots"] < ipc)[:, 0]
        cells = shard["classes"][wanted], shard["slots"][wanted]
        shards[cells], rows[cells] = len(paths), wanted.int()
        paths.append(path)
    if not paths or bool((shards < 0).any()):
        raise ValueError(f"{folder} does not hold {ipc} images of each of {num_classes} classes")
    return StoredImages(tuple(paths), shards, rows, shape)
