"""The images of a condensed set as they lie in its shards: what is held in memory does not grow with the set."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from ..data.jobs import Job
from ..files import check_room
from ..loaders.reading import naming, open_file, reading
from ..tensor_files import digests_of, first_byte, read_digests, read_metadata, read_tensors

_TOGETHER = 1024
"""Images that are taken from a place at once, before they go to where they are wanted."""


def shard_path(folder: Path, job: int) -> Path:
    return folder / f"shard-{job:05d}.safetensors"


class Shards:
    """Files of jobs, from which rows are taken. A file is read whole once, to see that it is what was written; then it
    is known where its images begin, and no others than those that are asked for are read."""

    def __init__(self, paths: tuple[Path, ...], shape_of_one: tuple[int, ...]):
        self.paths, self.shape_of_one = paths, shape_of_one
        self.begins: dict[int, int] = {}
        """The byte at which the images of a known shard begin, by its place among the paths."""

    def take(self, place: int, rows: Tensor) -> Tensor:
        """The images at `rows`, int64 [n], of the shard at a place: uint8 [n, 3, S, S]. Raises ValueError that names it
        if it cannot be read."""
        path = self.paths[place]
        if place not in self.begins:
            tensors, _ = read_tensors(path, "images")
            self.begins[place] = first_byte(path, "images")
            return tensors["images"][rows]
        with naming(path), open_file(path) as file:
            return _rows(file, self.begins[place], rows, self.shape_of_one)


class Spool:
    """A file without a name, on the disk of a folder, that takes images in any order and gives those that are asked
    for: a set that is read in one order and wanted in another need not lie in memory. It goes when nobody holds it."""

    def __init__(self, folder: Path | None, count: int, shape_of_one: tuple[int, ...]):
        if folder is not None:
            check_room(folder, count * math.prod(shape_of_one))
        self.shape_of_one = shape_of_one
        self._file = tempfile.TemporaryFile(dir=folder)

    def put(self, row: int, image: Tensor) -> None:
        """Takes an image, uint8 [3, S, S]."""
        self._file.seek(row * image.numel())
        self._file.write(image.contiguous().numpy().data)

    def take(self, _place: int, rows: Tensor) -> Tensor:
        """As `Shards.take`."""
        self._file.flush()
        return _rows(self._file, 0, rows, self.shape_of_one)


def _rows(file: BinaryIO, begin: int, rows: Tensor, shape_of_one: tuple[int, ...]) -> Tensor:
    """Those at `rows`, int64 [n], of the images that lie in a file from a byte on. Raises ValueError if it ends before
    one does."""
    images = torch.empty(len(rows), *shape_of_one, dtype=torch.uint8)
    for image, row in zip(images, rows.tolist(), strict=True):
        if os.preadv(file.fileno(), [image.numpy().data], begin + row * image.numel()) < image.numel():
            raise ValueError("it has become shorter")
    return images


class Holder(Protocol):
    """Where images lie, in places of several each."""

    shape_of_one: tuple[int, ...]

    def take(self, place: int, rows: Tensor) -> Tensor:
        """As `Shards.take`."""
        ...


@dataclass(frozen=True)
class StoredImages:
    """Images that lie in files: like a tensor uint8 [..., 3, S, S], of which `read` reads what has been picked."""

    holder: Holder
    places: Tensor
    """Integers [...]: the places of the images in the holder."""
    rows: Tensor
    """Integers [...]: of the images in their places."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.places.shape, *self.holder.shape_of_one)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> StoredImages:
        return StoredImages(self.holder, self.places[index], self.rows[index])

    def flatten(self) -> StoredImages:
        """The images in a row, [N, 3, S, S]."""
        return StoredImages(self.holder, self.places.flatten(), self.rows.flatten())

    def read(self, device: torch.device | str = "cpu") -> Tensor:
        """Reads all images onto a device, one place after another. Raises ValueError that names what cannot be read."""
        images = torch.empty(len(self.flatten()), *self.holder.shape_of_one, dtype=torch.uint8, device=device)
        order = self.places.flatten().argsort(stable=True)
        numbers, counts = self.places.flatten()[order].unique_consecutive(return_counts=True)
        rows = self.rows.flatten().long()
        for number, where in zip(numbers.tolist(), order.split(counts.tolist()), strict=True):
            for some in where.split(_TOGETHER):
                images[some.to(device)] = self.holder.take(number, rows[some]).to(device)
        return images.view(self.shape)


Images = Tensor | StoredImages


def read(images: Images) -> Tensor:
    """The images themselves, on the host if they were stored."""
    return images.read() if isinstance(images, StoredImages) else images


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


def pixels_sha256(paths: Sequence[Path]) -> str:
    """SHA-256 of the digests of some shards' images, as their headers have them; no image is read."""
    return hashlib.sha256("".join(read_digests(path).get("images", "") for path in paths).encode()).hexdigest()


def _shape(path: Path) -> tuple[int, ...]:
    """Shape of a shard's images, which are not read. Raises ValueError as `read_shard`."""
    with reading(path), safe_open(str(path), "pt") as file:
        digests_of(file.metadata(), path)
        images = file.get_slice("images")
        if images.get_dtype() != "U8":
            raise ValueError(f"{path} is damaged: its images are {images.get_dtype()}, not U8")
        return tuple(images.get_shape())


def find_images(folder: Path, made: Sequence[Job], num_classes: int, ipc: int, identity: str = "") -> StoredImages:
    """The first `ipc` slots among those of the jobs. identity: of what decides the images, if that is known; a shard of
    something else is refused, one of a bundle or an import does not tell. Raises ValueError if a job is missing or
    damaged."""
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
        if identity and read_metadata(path).get("recipe", identity) != identity:
            raise ValueError(f"{path} is of another recipe than its manifest.json; move it away and run recover again")
        shape = own
        wanted = torch.nonzero(shard["slots"] < ipc)[:, 0]
        cells = shard["classes"][wanted], shard["slots"][wanted]
        shards[cells], rows[cells] = len(paths), wanted.int()
        paths.append(path)
    if not paths or bool((shards < 0).any()):
        raise ValueError(f"{folder} does not hold {ipc} images of each of {num_classes} classes")
    return StoredImages(Shards(tuple(paths), shape), shards, rows)
