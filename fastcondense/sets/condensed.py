"""The condensed set: uint8 images [classes, ipc, 3, S, S] in lossless shards, one a job, and a manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.jobs import Job
from ..files import first_difference, tree_sha256, write_json
from ..loaders.reading import naming, read_file
from ..records import ShardMetadata, checked, parse_json, read_manifest
from ..tensor_files import read_metadata, read_tensors, write_tensors
from .record import Record
from .stored_images import Images, StoredImages, find_images, read, read_shard, shard_path

FORMAT = 3


class CondensedSet:
    """Images in class order, and within a class in order of rank: the first n are the IPC-n set.

    They are a tensor, or lie in shards until `images` asks for all of them; what asks for some reads those alone.
    """

    def __init__(self, images: Images, classes: tuple[str, ...]):
        self._images, self.classes = images, classes

    @property
    def images(self) -> Tensor:
        """uint8 [classes, ipc, 3, S, S] on the host."""
        self._images = read(self._images)
        return self._images

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of `images`."""
        return tuple(self._images.shape)

    @property
    def ipc(self) -> int:
        return self.shape[1]

    @property
    def num_images(self) -> int:
        return self.shape[0] * self.shape[1]

    def first(self, ipc: int) -> CondensedSet:
        """The first images of each class. Raises ValueError if there are fewer."""
        if ipc > self.ipc:
            raise ValueError(f"the set has {self.ipc} images of each class, {ipc} are wanted")
        return self if ipc == self.ipc else CondensedSet(self._images[:, :ipc], self.classes)

    def flat(self) -> tuple[Tensor, Tensor]:
        """Images uint8 [classes * ipc, 3, S, S] and labels int64, class by class."""
        images, labels = self.unread()
        return read(images), labels

    def unread(self) -> tuple[Images, Tensor]:
        """As `flat`, but stored images stay where they are."""
        images = self._images.flatten() if isinstance(self._images, StoredImages) else self._images.flatten(0, 1)
        return images, torch.arange(len(self.classes)).repeat_interleave(self.ipc)

    def rows(self, rows: range) -> Tensor:
        """Images number `rows` of `flat`, uint8 [n, 3, S, S]; no others are read."""
        numbers = torch.tensor(rows, dtype=torch.int64)
        return self.some(numbers // self.ipc, numbers % self.ipc)

    def some(self, labels: Tensor, slots: Tensor) -> Tensor:
        """The images of these classes and slots, int64 [n] each: uint8 [n, 3, S, S]; no others are read."""
        return read(self._images[labels, slots])

    def of_class(self, label: int) -> Tensor:
        """The images of a class, uint8 [ipc, 3, S, S]; no others are read."""
        return read(self._images[label])

    @cached_property
    def digests(self) -> list[str]:
        """SHA-256 of the pixels of each class, in class order."""
        return [hashlib.sha256(self._values(label)).hexdigest() for label in range(len(self.classes))]

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of all pixels, in the order of the classes and slots."""
        digest = hashlib.sha256()
        for label in range(len(self.classes)):
            digest.update(self._values(label))
        return digest.hexdigest()

    def _values(self, label: int) -> memoryview:
        return self.of_class(label).contiguous().numpy().data

    def corner(self, num_classes: int, num_slots: int) -> Tensor:
        """The first slots of the first classes, at most so many: uint8 [m, n, 3, S, S]; no others are read."""
        return read(self._images[:num_classes, :num_slots])


def open_folder(folder: Path, manifest: Mapping[str, Any], versions: dict[str, str]) -> dict[str, str]:
    """Starts or continues a condensed set; one without images yet is started anew. Returns the versions that it was
    begun with.

    Raises ValueError if the folder holds images that were made from something else, and names what differs.
    """
    path = folder / "manifest.json"
    if not path.exists() or not any(folder.glob("shard-*.safetensors")):
        write_json(path, {"format": FORMAT, **manifest, "versions": versions})
        return versions
    stored = read_manifest(path)
    wanted = json.loads(json.dumps(manifest))
    if difference := first_difference({key: stored.get(key) for key in wanted}, wanted):
        raise ValueError(
            f"{folder} holds images of another recipe ({difference}); choose another --out, or delete that folder"
        )
    return dict(stored.get("versions", {}))


def write_shard(
    folder: Path,
    job: Job,
    images: Tensor,
    losses: Tensor,
    metadata: Mapping[str, str],
    record: Record | None = None,
) -> None:
    """One finished job: images uint8 [n, 3, S, S], losses float32 [T, 3], and what the report shows of how the
    images formed."""
    record = record or Record()
    tensors = {"images": images, "classes": job.classes(), "slots": job.slots(), "losses": losses}
    write_tensors(shard_path(folder, job.index), tensors | record.tensors(), {**metadata, **record.metadata()})


def read_set(folder: Path, made: Sequence[Job], ipc: int, classes: tuple[str, ...]) -> CondensedSet:
    """The first `ipc` slots among those of the jobs, which stay in their shards until they are asked for.

    Raises ValueError if a job is missing or damaged.
    """
    path = folder / "manifest.json"
    identity = identity_of(parse_json(read_file(path), path)) if path.exists() else ""
    return CondensedSet(find_images(folder, made, len(classes), ipc, identity), classes)


def identity_of(manifest: Mapping[str, Any]) -> str:
    """Hash of all that decides the images of a set, as its manifest tells: classes, settings and teachers."""
    return tree_sha256({key: manifest.get(key) for key in ("classes", "recipe", "teachers")})


def read_present(
    folder: Path, everything: Sequence[Job], num_classes: int, num_slots: int
) -> tuple[dict[tuple[int, int], Tensor], list[Job]]:
    """The finished images of the first classes and slots: uint8 [3, S, S] by class and slot; and all finished jobs."""
    finished = [job for job in everything if shard_path(folder, job.index).exists()]
    images: dict[tuple[int, int], Tensor] = {}
    for job in finished:
        if job.first_class < num_classes and job.first_slot < num_slots:
            shard = read_shard(folder, job, "images")
            places = zip(shard["classes"].tolist(), shard["slots"].tolist(), strict=True)
            for place, image in zip(places, shard["images"], strict=True):
                if place[0] < num_classes and place[1] < num_slots:
                    images[place] = image.clone()
    return images, finished


def read_seconds(shard: Path) -> float:
    """Seconds that the job of a shard took, as it says."""
    return checked(read_metadata(shard), ShardMetadata, shard, is_text=True).get("seconds", 0.0)


def read_record(folder: Path, job: int) -> Record:
    """The record of how the images of a finished job formed; empty if it was made before that was kept."""
    path = shard_path(folder, job)
    with naming(path):
        return Record.of(*read_tensors(path, "snapshots/", "layers/"))
