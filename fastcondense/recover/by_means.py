"""Recover by class means: what frozen backbones see in a class's images points where the real images' mean does.

Classes do not know each other, so what a job makes depends on its classes, slots and the real images' means alone. The
published objective is beside it: head_gradients.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.jobs import Job
from ..data.real import Normalization
from ..kernels.crop import crop
from ..networks.graph import Graphs
from ..recipe.recipe import Recipe
from ..rng import Stream
from ..sets.record import Record
from ..views.windows import windows
from .engine import Recoverer
from .feature_targets import Backbone, Target
from .pyramid import LevelPyramid
from .recording import SnapshotRecorder
from .unfinished import State


def view_table(recipe: Recipe, job: Job) -> Tensor:
    """Windows of every view of every image in each iteration, int32 [T, views * images, 7], view after view.

    They depend on (seed, class, slot, iteration, view) alone.
    """
    recover, size = recipe.recover, recipe.dataset.image_size
    times = np.arange(recover.iterations * recover.means.views)[:, None]
    classes, slots = job.classes().numpy(), job.slots().numpy()
    table = np.empty((len(times), job.num_images, 7), dtype=np.int32)
    for slot in np.unique(slots):
        stream = Stream(recipe.seed, f"recover/views/slot-{slot}")
        table[:, slots == slot] = windows(stream, recover, classes[slots == slot][None], times, size, size)
    return torch.from_numpy(table).view(recover.iterations, -1, 7)


class MeansStep:
    """One iteration on static buffers, so that it can be captured; nothing in it is read by the host."""

    def __init__(
        self, recipe: Recipe, job: Job, backbones: Sequence[Backbone], targets: Sequence[Target], device: torch.device
    ):
        self.recipe, self.backbones, self.targets = recipe, backbones, targets
        self.views, self.shape = recipe.recover.means.views, (job.num_classes, job.num_slots)
        self.pyramid = LevelPyramid(recipe, job.num_images, device)
        self.normalize = Normalization.of(recipe.dataset, device)
        num_views = self.views * job.num_images
        self.windows = torch.zeros(recipe.recover.iterations, num_views, 7, dtype=torch.int32, device=device)
        self.rate = torch.tensor(recipe.recover.lr, device=device)
        self.losses = torch.zeros(recipe.recover.iterations, 3, device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)

    def load(self, job: Job) -> None:
        """Resets all buffers, in place, to the beginning of a job of the same shape."""
        self.pyramid.load(job)
        self.windows.copy_(view_table(self.recipe, job))
        for target in self.targets:
            target.load(job)
        self.losses.zero_()
        self.step.zero_()

    def state(self) -> State:
        """All that the iterations have changed, for `restore`; not copied."""
        return self.pyramid.state() | {"losses": self.losses, "step": self.step}

    def restore(self, tensors: State) -> None:
        """Goes on, in place, from the state of the job that is loaded."""
        for name, buffer in self.state().items():
            buffer.copy_(tensors[name])

    def images(self, pixels: Tensor) -> Tensor:
        """Pixels from 0 to 1, normalised."""
        return self.normalize(255 * pixels)

    def loss(self, pixels: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and mean of the targets' losses. pixels: [N, 3, S, S] in 0 ... 1; table: int32 [views * N, 7]."""
        images = self.images(pixels).repeat(self.views, 1, 1, 1)
        seen = crop(images, table, images.shape[-1], dtype=images.dtype)
        losses = [
            target(backbone(seen).unflatten(0, (self.views, *self.shape))).flatten()
            for backbone, target in zip(self.backbones, self.targets, strict=True)
        ]
        every = torch.cat(losses)
        return every.sum(), every.mean()

    def __call__(self) -> None:
        """Advances the pyramid by a step of Adam, and the loss log and step counter."""
        leaves = self.pyramid.leaves()
        total, mean = self.loss(self.pyramid.pixels(leaves), self.windows.index_select(0, self.step)[0])
        self.pyramid.descend(torch.autograd.grad(total, leaves), self.rate)
        mean = mean.detach()
        self.losses.index_copy_(0, self.step, torch.stack((mean, mean * 0, mean))[None])
        self.step += 1


class ByMeans(Recoverer):
    """Features of condensed images matched with those of real ones. Buffers and graphs are made once a job's shape.

    target_of: makes what each of the backbones should see in jobs of a shape. Losses are total, 0, total.
    """

    def __init__(
        self,
        recipe: Recipe,
        backbones: Sequence[Backbone],
        device: torch.device,
        target_of: Callable[[Job], Sequence[Target]],
    ):
        super().__init__(recipe, device)
        self.backbones, self.target_of, self.graphs = backbones, target_of, Graphs(device)
        self.steps: dict[tuple[int, ...], tuple[MeansStep, Callable[[], None]]] = {}

    def begin(self, job: Job) -> None:
        if job.shape not in self.steps:
            step = MeansStep(self.recipe, job, self.backbones, self.target_of(job), self.device)
            step.load(job)
            self.steps[job.shape] = step, self.graphs.capture(step, step.step.zero_)
        self.step, self.advance_step = self.steps[job.shape]
        self.step.load(job)
        self.snapshots = SnapshotRecorder(self.recipe, job, self.device)

    def advance(self, iteration: int) -> None:
        self.step.pyramid.grow(iteration)
        for target in self.step.targets:
            target.refresh(iteration)
        if self.snapshots.is_due(iteration):
            self.snapshots.take(self.step.images(self.step.pyramid.pixels()))
        self.advance_step()

    def state(self) -> State:
        return self.step.state() | self.snapshots.state()

    def restore(self, tensors: State) -> None:
        self.step.restore(tensors)
        self.snapshots.restore(tensors)

    def made(self) -> tuple[Tensor, Tensor, Record]:
        return self.step.images(self.step.pyramid.pixels()), self.step.losses, Record(self.snapshots.snapshots())
