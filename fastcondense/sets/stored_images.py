"""The images of a condensed set as they lie in its shards: what is held in memory does not grow with the set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..data.jobs import Job
from ..loaders.reading import reading
from ..tensor_files import DIGESTS, read_tensors


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
    known: set[int] = field(default_factory=set, compare=False)
    """Places of the shards whose images were seen to be those that were written."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.shards.shape, *self.shape_of_one)

    def cells(self, labels: Tensor, slots: Tensor) -> StoredImages:
        """Those of other classes and slots, int64 [m, n] each."""
        shards, rows = self.shards[labels, slots], self.rows[labels, slots]
        return StoredImages(self.paths, shards, rows, self.shape_of_one, self.known)

    def read(self) -> Tensor:
        """All of them; one shard after another is open. Raises ValueError that names one which cannot be read."""
        images = torch.empty(self.shape, dtype=torch.uint8)
        for number in self.shards.unique().tolist():
            is_here = self.shards == number
            shard, _ = read_tensors(self.paths[number], "images", is_known=number in self.known)
            images[is_here] = shard["images"][self.rows[is_here].long()]
            self.known.add(number)
        return images


def read_shard(folder: Path, job: Job, *prefixes: str) -> dict[str, Tensor]:
    """The tensors of a finished job whose names begin with one of the prefixes.

    Raises ValueError that names a shard which is missing or damaged, has no digests, or holds another job.
    """
    path = shard_path(folder, job.index)
    shape = _shape(path)
    shard, _ = read_tensors(path, "classes", "slots", *prefixes)
    for name, wanted in (("classes", job.classes()), ("slots", job.slots())):
        if name not in shard or shard[name].dtype != wanted.dtype or not torch.equal(shard[name], wanted):
            raise ValueError(f"{path} is damaged: its {name} are not those of job {job.index}")
    if len(shape) != 4 or shape[:2] != (job.num_images, 3):
        raise ValueError(f"{path} is damaged: its images are {shape}, not {job.num_images} of 3 channels")
    return shard


def _shape(path: Path) -> tuple[int, ...]:
    """Of a shard's images, which are not read. Raises ValueError as `read_shard`."""
    with reading(path), safe_open(str(path), "pt") as file:
        if DIGESTS not in (file.metadata() or {}):
            raise ValueError(f"{path} has no digests of its tensors: another version wrote it, or it is damaged")
        images = file.get_slice("images")
        if images.get_dtype() != "U8":
            raise ValueError(f"{path} is damaged: its images are {images.get_dtype()}, not U8")
        return tuple(images.get_shape())


def find_images(folder: Path, made: Sequence[Job], num_classes: int, ipc: int) -> StoredImages:
    """The first `ipc` slots among those of the jobs. Raises ValueError if a job is missing or damaged."""
    wanted_jobs = [job for job in made if job.first_slot < ipc]
    for job in wanted_jobs:
        if not (path := shard_path(folder, job.index)).exists():
            raise ValueError(f"{folder} is not finished: {path.name} is missing; run recover again")
    held = sum(shard_path(folder, job.index).stat().st_size for job in wanted_jobs)
    if num_classes * ipc * 3 > held:
        raise ValueError(f"{folder} has {held} bytes of shards, too few for {ipc} images of {num_classes} classes")
    shards, rows = (torch.full((num_classes, ipc), -1, dtype=torch.int32) for _ in range(2))
    paths: list[Path] = []
    shape: tuple[int, ...] = ()
    for job in wanted_jobs:
        path = shard_path(folder, job.index)
        shard, own = read_shard(folder, job), _shape(path)[1:]
        if paths and shape != own:
            raise ValueError(f"{path} is damaged: its images have another size than those of {paths[0].name}")
        shape = own
        wanted = torch.nonzero(shard["slots"] < ipc)[:, 0]
        cells = shard["classes"][wanted], shard["slots"][wanted]
        shards[cells], rows[cells] = len(paths), wanted.int()
        paths.append(path)
    if not paths or bool((shards < 0).any()):
        raise ValueError(f"{folder} does not hold {ipc} images of each of {num_classes} classes")
    return StoredImages(tuple(paths), shards, rows, shape)
