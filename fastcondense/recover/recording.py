"""What is kept of a job's way to its images, for the report: small copies of them, and every layer's matching loss.

Both are copied on the device between iterations, at moments that the host knows beforehand: it reads nothing until the
job is finished, the iterations are the same with and without, and so are the images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.jobs import Job
from ..data.real import Normalization
from ..recipe.recipe import Recipe
from ..sets.record import LayerLosses, Record, Snapshots
from ..teachers.teacher import Teacher
from .schedule import Turn

SNAPSHOT_CLASSES, SNAPSHOT_SIDE = 20, 64
"""Classes whose first slot is kept in small copies, and the most pixels that these have a side."""
LAYER_ROWS = 64
"""Iterations of a teacher whose losses a layer are kept, at most."""


def shown_rows(job: Job) -> Tensor:
    """Numbers of the job's images that have snapshots, the first of each class: int64."""
    return torch.nonzero((job.slots() == 0) & (job.classes() < SNAPSHOT_CLASSES))[:, 0]


class SnapshotRecorder:
    """Takes the snapshots of a job: before recover.snapshots evenly spread iterations, the first among them."""

    def __init__(self, recipe: Recipe, job: Job, device: torch.device):
        iterations, count = recipe.recover.iterations, recipe.recover.snapshots
        self.rows = shown_rows(job)
        self.classes = job.classes()[self.rows]
        self.moments = sorted({k * iterations // count for k in range(count)}) if len(self.classes) else []
        self.side = min(SNAPSHOT_SIDE, recipe.dataset.image_size)
        self.normalize = Normalization.of(recipe.dataset, device)
        self.taken: list[Tensor] = []

    def is_due(self, iteration: int) -> bool:
        return iteration in self.moments

    def take(self, images: Tensor) -> None:
        """Takes a snapshot. images: all of the job's, normalised [N, 3, S, S]."""
        self.taken.append(self.normalize.pixels(shrunk(images.detach()[self.rows.to(images.device)], self.side)))

    def state(self) -> dict[str, Tensor]:
        """What was taken so far, for `restore`."""
        return {"snapshots": torch.stack(self.taken)} if self.taken else {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from a state."""
        self.taken = list(tensors.get("snapshots", torch.empty(0)).to(self.normalize.gain.device))

    def snapshots(self) -> Snapshots | None:
        """All snapshots, on the host; None if none was taken."""
        if not self.taken:
            return None
        return Snapshots(torch.stack(self.taken).cpu(), self.classes, torch.tensor(self.moments))


def shrunk(images: Tensor, side: int) -> Tensor:
    """Bilinear, antialiased where they get smaller."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


class JobRecorder:
    """Takes the snapshots of a job, and its layers' losses in up to LAYER_ROWS of the iterations that a teacher sees.

    order: the turns, which begin again after the last.
    """

    def __init__(
        self, recipe: Recipe, job: Job, teachers: Sequence[Teacher], order: Sequence[Turn], device: torch.device
    ):
        self.snapshots, self.device = SnapshotRecorder(recipe, job, device), device
        self.order, self.match_weight, self.teachers = order, recipe.recover.match_weight, teachers
        self.moments: list[list[int]] = []
        for number, teacher in enumerate(teachers):
            turns = [place for place, turn in enumerate(order) if any(which == number for which, _ in turn)]
            seen = [t for t in range(recipe.recover.iterations) if t % len(order) in turns]
            rows = np.linspace(0, len(seen) - 1, min(LAYER_ROWS, len(seen))).round().astype(int)
            self.moments.append([seen[row] for row in rows] if teacher.layers else [])
        self.due = [frozenset(moments) for moments in self.moments]
        self.taken: list[list[Tensor]] = [[] for _ in teachers]

    def before(self, iteration: int, images: Tensor) -> None:
        """Takes a snapshot of images, normalised [N, 3, S, S], if one is due before the iteration."""
        if self.snapshots.is_due(iteration):
            self.snapshots.take(images)

    def after(self, iteration: int, layer_losses: Callable[[int], Tensor]) -> None:
        """Takes the losses that are due after the iteration. layer_losses: of a teacher, by number, [its layers]."""
        for which, weight in self.order[iteration % len(self.order)]:
            if iteration in self.due[which]:
                self.taken[which].append(weight * self.match_weight * layer_losses(which))

    def state(self) -> dict[str, Tensor]:
        """All that was taken so far, for `restore`."""
        lists = {"snapshots": self.snapshots.taken, **{str(which): taken for which, taken in enumerate(self.taken)}}
        return {f"recorded/{name}": torch.stack(taken) for name, taken in lists.items() if taken}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on after what another recorder of the job has taken."""
        for name, tensor in tensors.items():
            kind, _, which = name.partition("/")
            if kind == "recorded":
                taken = [one.to(self.device) for one in tensor]
                if which == "snapshots":
                    self.snapshots.taken = taken
                else:
                    self.taken[int(which)] = taken

    def record(self) -> Record:
        """The record of the job, on the host."""
        names = [tuple(layer.name for layer in teacher.layers) for teacher in self.teachers]
        tables = [
            LayerLosses(teacher.name, names[which], torch.tensor(moments), torch.stack(taken).float().cpu())
            for which, (teacher, moments, taken) in enumerate(zip(self.teachers, self.moments, self.taken, strict=True))
            if taken
        ]
        return Record(self.snapshots.snapshots(), tables)
