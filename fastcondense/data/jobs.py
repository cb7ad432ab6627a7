"""Jobs: which images are optimised together. Any worker may do any job, in any order.

A job holds some slots of some consecutive classes, class by class. With one slot a job, as in SRe2L, jobs are numbered
slot by slot and do not depend on the number of slots: an IPC-n set is the beginning of an IPC-K set. With
recover.split_classes jobs are consecutive images, class by class, and may begin and end within a class.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ..recipe.recipe import Recipe, own_recipe
from ..records import read_manifest

_MOST = 2_000_000
"""Jobs of a run: about half a gigabyte of the host's memory."""


@dataclass(frozen=True)
class Job:
    """The slots [first_slot, first_slot + num_slots) of the classes [first_class, first_class + num_classes).

    Of these images, class by class, those before number `begin` and from number `end` on are not the job's.
    """

    index: int
    first_slot: int
    num_slots: int
    first_class: int
    num_classes: int
    begin: int = 0
    end: int | None = None

    @property
    def num_images(self) -> int:
        return len(range(self.num_classes * self.num_slots)[self.begin : self.end])

    @property
    def shape(self) -> tuple[int, ...]:
        """Classes and slots, and which of these are not the job's: jobs of one shape can use the same buffers."""
        every = self.num_classes, self.num_slots
        return every if self.num_images == self.num_classes * self.num_slots else (*every, self.begin, self.num_images)

    @property
    def counts(self) -> tuple[int, ...]:
        """Images of each class."""
        bounds = [self.num_slots * k for k in range(self.num_classes + 1)]
        bounds[0], bounds[-1] = self.begin, self.begin + self.num_images
        return tuple(end - begin for begin, end in pairwise(bounds))

    def classes(self) -> Tensor:
        """The class of each image, int64 [num_images]."""
        every = torch.arange(self.num_classes).repeat_interleave(self.num_slots) + self.first_class
        return every[self.begin : self.end]

    def slots(self) -> Tensor:
        """The slot of each image, int64 [num_images]."""
        return (torch.arange(self.num_slots).repeat(self.num_classes) + self.first_slot)[self.begin : self.end]


def jobs(recipe: Recipe, num_classes: int) -> list[Job]:
    """All jobs of a recipe: group of slots by group of slots, and in a group by class.

    Raises ValueError while recover.batch_size is 0, which recover chooses when it begins, and for millions of jobs.
    """
    recover = recipe.recover
    if recover.batch_size == 0:
        raise ValueError("recover.batch_size is 0, which recover replaces by what fits in memory; run recover first")
    if recover.split_classes:
        return _consecutive(recipe.ipc, num_classes, recover.batch_size)
    slots = min(recover.slots_per_job or recipe.ipc, recipe.ipc, recover.batch_size)
    classes = min(num_classes, recover.classes_per_job or max(1, recover.batch_size // slots))
    if (count := -(-recipe.ipc // slots) * -(-num_classes // classes)) > _MOST:
        raise ValueError(f"{recipe.ipc} images of each of {num_classes} classes are {count} jobs, more than {_MOST}")
    cells = [(slot, first) for slot in range(0, recipe.ipc, slots) for first in range(0, num_classes, classes)]
    return [
        Job(index, slot, min(slots, recipe.ipc - slot), first, min(classes, num_classes - first))
        for index, (slot, first) in enumerate(cells)
    ]


def _consecutive(ipc: int, num_classes: int, size: int) -> list[Job]:
    """Jobs of `size` images each, the last of what is left; image k of class c has number c ipc + k."""
    made = []
    for index, first in enumerate(range(0, ipc * num_classes, size)):
        last = min(first + size, ipc * num_classes)
        top, bottom = first // ipc, -(-last // ipc)
        end = last - top * ipc
        made.append(Job(index, 0, ipc, top, bottom - top, first - top * ipc, None if last == bottom * ipc else end))
    return made


def with_batch_size(recipe: Recipe, batch_size: int) -> Recipe:
    """The recipe with another recover.batch_size."""
    return dataclasses.replace(recipe, recover=dataclasses.replace(recipe.recover, batch_size=batch_size))


def kept_batch_size(out: Path, recipe: Recipe) -> int:
    """The recover.batch_size that the run in `out` was begun with; 0 if it was not, or with other settings."""
    manifest, kept = out / "condensed" / "manifest.json", out / "recipe.toml"
    if manifest.exists():
        size = read_manifest(manifest)["recipe"].get("recover", {}).get("batch_size", 0)
        if not isinstance(size, int) or size < 0:
            raise ValueError(f"{manifest} is damaged: field recipe.recover.batch_size: expected a number, got {size!r}")
        if size:
            return size
    if not kept.exists():
        return 0
    before = own_recipe(kept)
    return before.recover.batch_size if makes_the_same(before, recipe) else 0


def makes_the_same(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes make the same images, but for a recover.batch_size that is still to be chosen."""
    parts = other.recover_parts()
    return with_batch_size(one, 0).sha256(*parts) == with_batch_size(other, 0).sha256(*parts)
