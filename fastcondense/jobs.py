"""Jobs: which images are optimised together. Any worker may do any job, in any order.

A job holds some slots of some consecutive classes, class by class. With one slot a job, as in SRe2L, jobs are numbered
slot by slot and do not depend on the number of slots: an IPC-n set is the beginning of an IPC-K set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .recipe import Recipe


@dataclass(frozen=True)
class Job:
    """The slots [first_slot, first_slot + num_slots) of the classes [first_class, first_class + num_classes)."""

    index: int
    first_slot: int
    num_slots: int
    first_class: int
    num_classes: int

    @property
    def num_images(self) -> int:
        return self.num_classes * self.num_slots

    @property
    def shape(self) -> tuple[int, int]:
        """Classes and slots: jobs of one shape can use the same buffers."""
        return self.num_classes, self.num_slots

    def classes(self) -> Tensor:
        """The class of each image, int64 [num_images]."""
        return torch.arange(self.num_classes).repeat_interleave(self.num_slots) + self.first_class

    def slots(self) -> Tensor:
        """The slot of each image, int64 [num_images]."""
        return torch.arange(self.num_slots).repeat(self.num_classes) + self.first_slot


def jobs(recipe: Recipe, num_classes: int) -> list[Job]:
    """All jobs of a recipe: group of slots by group of slots, and in a group by class."""
    recover = recipe.recover
    slots = min(recover.slots_per_job or recipe.ipc, recipe.ipc, recover.batch_size)
    classes = min(num_classes, recover.classes_per_job or max(1, recover.batch_size // slots))
    cells = [(slot, first) for slot in range(0, recipe.ipc, slots) for first in range(0, num_classes, classes)]
    return [
        Job(index, slot, min(slots, recipe.ipc - slot), first, min(classes, num_classes - first))
        for index, (slot, first) in enumerate(cells)
    ]
