"""Recover by features: the tiles of mosaics are pulled towards whole real images, their anchors (CIM)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..data.jobs import Job
from ..data.noise import InitialImages
from ..data.real import Normalization
from ..kernels.crop import crop
from ..kernels.pixel_adam import pixel_adam
from ..networks.graph import Graphs
from ..networks.precision import network_dtype
from ..recipe.recipe import Recipe
from ..recipe.shared import Operation
from ..rng import Stream
from ..sets.record import Record
from ..teachers.cut import Cut
from ..teachers.teacher import Teacher
from ..views.augment import augment, augmentations
from ..views.tiles import strip_bounds
from .background import prepare
from .engine import Recoverer
from .recording import SnapshotRecorder
from .unfinished import State

_WEIGHT_DECAY = 0.01  # AdamW's, of the additive change of the images
_AUGMENT: tuple[Operation, ...] = ("flip", "crop", "cutout")  # CIM's, in each iteration for all tiles and anchors alike
_PAIRS = 64  # of a tile and its anchor that go through the network together: bounds the memory
Anchors = Callable[[Job], Tensor]
"""Normalised real images of a job, float32 [factor^2 num_images, 3, S, S], on the device of the run: number
k num_images + i is the anchor of tile k, row by row, of image i."""


def tile_windows(size: int, factor: int) -> Tensor:
    """Windows of the tiles of an image, row by row, int32 [factor^2, 7], as `crop` takes them.

    The first size % factor rows and columns of tiles are a pixel larger than the others.
    """
    bounds = strip_bounds(size, factor).tolist()
    strips = [(begin, end - begin) for begin, end in pairwise(bounds)]
    rows = [[top, left, height, width, 0, 0, 0] for top, height in strips for left, width in strips]
    return torch.tensor(rows, dtype=torch.int32)


def augmentation_table(recipe: Recipe, job: Job) -> Tensor:
    """Augmentations of all tiles and anchors in each iteration, float32 [T, 1, columns]."""
    stream, iterations = Stream(recipe.seed, "recover/augment"), np.arange(recipe.recover.iterations)
    size = recipe.dataset.image_size
    return augmentations(stream, _AUGMENT, np.array([job.index]), iterations[:, None], size)


class FeatureStep:
    """One iteration on static buffers, so that it can be captured; nothing in it is read by the host.

    What is optimised is the images' change `delta`, in pixels from 0 to 1.
    """

    def __init__(self, recipe: Recipe, job: Job, observer: Cut, device: torch.device):
        recover, size = recipe.recover, recipe.dataset.image_size
        self.recipe, self.size, self.observer = recipe, size, observer
        self.initial = torch.zeros(job.num_images, 3, size, size, device=device)
        self.delta, self.first, self.second = (torch.zeros_like(self.initial) for _ in range(3))
        windows = tile_windows(size, recover.initial.factor)
        self.anchors = torch.zeros(len(windows) * job.num_images, 3, size, size, device=device)
        self.windows = windows.repeat_interleave(job.num_images, 0).to(device)
        self.image_of = torch.arange(job.num_images, device=device).repeat(len(windows))
        self.contrast = 255 * Normalization.of(recipe.dataset, device).gain[:, None, None]  # 1 / deviation
        self.rate = torch.tensor(recover.lr, device=device)
        self.low, self.high = (torch.full((3,), bound, device=device) for bound in (-torch.inf, torch.inf))
        self.table = augmentation_table(recipe, job).to(device)
        self.losses = torch.zeros(recover.iterations, 3, device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)

    def load(self, job: Job, initial: InitialImages, anchors: Anchors) -> None:
        """Resets all buffers, in place, to the beginning of a job of the same shape."""
        self.initial.copy_(initial(job))
        self.anchors.copy_(anchors(job))
        self.table.copy_(augmentation_table(self.recipe, job))
        for zeroed in (self.delta, self.first, self.second, self.losses, self.step):
            zeroed.zero_()

    def state(self) -> State:
        """All that the iterations have changed, for `restore`; not copied."""
        return {name: getattr(self, name) for name in ("delta", "first", "second", "losses", "step")}

    def restore(self, tensors: State) -> None:
        """Goes on, in place, from the state of the job that is loaded."""
        for name, buffer in self.state().items():
            buffer.copy_(tensors[name])

    def images(self, delta: Tensor) -> Tensor:
        """The changed images, normalised, [num_images, 3, S, S]."""
        return self.initial + delta * self.contrast

    def loss(self, delta: Tensor, pairs: slice, row: Tensor) -> Tensor:
        """sum_j mean_d |phi(anchor_j) - phi(tile_j)|_d over the pairs j, all augmented by the table's `row` [1, ...].

        phi: the observer's features; tiles are enlarged to S x S, bilinearly.
        """
        images = self.images(delta).index_select(0, self.image_of[pairs])
        tiles = crop(images, self.windows[pairs], self.size, dtype=images.dtype)
        with torch.no_grad():
            wanted = self._features(self.anchors[pairs], row)
        return (wanted - self._features(tiles, row)).abs().flatten(1).mean(1).sum()

    def loss_and_gradient(self) -> tuple[Tensor, Tensor]:
        """The loss of all pairs and its gradient in delta, part by part."""
        row = self.table.index_select(0, self.step)[0]
        total, gradient = torch.zeros_like(self.rate), torch.zeros_like(self.delta)
        for begin in range(0, len(self.anchors), _PAIRS):
            delta = self.delta.detach().requires_grad_()
            loss = self.loss(delta, slice(begin, begin + _PAIRS), row)
            gradient += torch.autograd.grad(loss, delta)[0]
            total = total + loss.detach()
        return total, gradient

    def __call__(self) -> None:
        """Advances delta by one step of AdamW (Loshchilov and Hutter, ICLR'19), and the loss log and step counter."""
        loss, gradient = self.loss_and_gradient()
        self.delta.mul_(1 - self.rate * _WEIGHT_DECAY)
        pixel_adam(
            self.delta,
            gradient,
            self.first,
            self.second,
            self.rate,
            (self.step[0] + 1).float(),
            betas=self.recipe.recover.betas,
            low=self.low,
            high=self.high,
        )
        self.losses.index_copy_(0, self.step, torch.stack((loss, loss * 0, loss))[None])
        self.step += 1

    def _features(self, images: Tensor, row: Tensor) -> Tensor:
        views = augment(images, row, _AUGMENT)
        return self.observer(views.to(self.observer.dtype or views.dtype))


class ByFeatures(Recoverer):
    """Tiles pulled towards their anchors. Buffers and CUDA graphs are made once for each shape of a job.

    teachers: those of recover.teachers; the first observes, up to recover.features.layer. initial: mosaics of the
    anchors, shrunk. Losses are total, 0, total. The published product is float32, neither clamped nor rounded, so the
    published students see slightly other pixels. Raises ValueError as `Cut` does.
    """

    def __init__(
        self,
        recipe: Recipe,
        teachers: Sequence[Teacher],
        device: torch.device,
        initial: InitialImages,
        anchors: Anchors,
    ):
        super().__init__(recipe, device)
        self.initial, self.anchors = initial, anchors
        observer = teachers[0].cast(network_dtype(recipe.recover.precision))
        self.observer = Cut(observer, recipe.recover.features.layer)
        self.graphs = Graphs(device)
        self.steps: dict[tuple[int, ...], tuple[FeatureStep, Callable[[], None]]] = {}

    def begin(self, job: Job) -> None:
        if job.shape not in self.steps:
            step = FeatureStep(self.recipe, job, self.observer, self.device)
            self.steps[job.shape] = step, self.graphs.capture(step, step.step.zero_)
        self.step, self.advance_step = self.steps[job.shape]
        self.step.load(job, self.initial, self.anchors)
        self.snapshots = SnapshotRecorder(self.recipe, job, self.device)

    def prepare(self, ahead: Job) -> None:
        prepare(ahead, self.initial, self.anchors)

    def advance(self, iteration: int) -> None:
        if self.snapshots.is_due(iteration):
            self.snapshots.take(self.step.images(self.step.delta))
        self.advance_step()

    def state(self) -> State:
        return self.step.state() | self.snapshots.state()

    def restore(self, tensors: State) -> None:
        self.step.restore(tensors)
        self.snapshots.restore(tensors)

    def made(self) -> tuple[Tensor, Tensor, Record]:
        return self.step.images(self.step.delta), self.step.losses, Record(self.snapshots.snapshots())
