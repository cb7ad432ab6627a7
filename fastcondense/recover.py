"""Recover: images by gradient descent through frozen teachers (SRe2L, CDA; spec sections 1.2 and 2).

A job is one image of each of up to batch_size consecutive classes, all of one slot. Its images depend on the recipe,
the seed and the job alone; jobs are numbered slot by slot, so an IPC-n set is the beginning of an IPC-K set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .graph import Graphs
from .kernels.crop import crop
from .kernels.image_prior import image_prior
from .kernels.pixel_adam import pixel_adam
from .matching import Matching, layer_weights
from .precision import arithmetic, network_dtype
from .real import Normalization
from .recipe import Recipe, Recover
from .rng import Stream
from .teacher import Teacher
from .windows import windows


@dataclass(frozen=True)
class Job:
    """Images that are optimised together: slot `slot` of the classes [first_class, first_class + num_classes)."""

    index: int
    slot: int
    first_class: int
    num_classes: int

    def classes(self) -> Tensor:
        """int64 [num_classes]."""
        return torch.arange(self.first_class, self.first_class + self.num_classes)


def blocks(num_classes: int, batch_size: int) -> int:
    """Jobs a slot."""
    return -(-num_classes // batch_size)


def jobs(recipe: Recipe, num_classes: int) -> list[Job]:
    """All jobs of a recipe, slot by slot."""
    size = recipe.recover.batch_size
    num_blocks = blocks(num_classes, size)
    return [
        Job(slot * num_blocks + block, slot, block * size, min(size, num_classes - block * size))
        for slot in range(recipe.ipc)
        for block in range(num_blocks)
    ]


def learning_rates(recover: Recover) -> Tensor:
    """lr_t = lr (1 + cos(pi t / T)) / 2 for t = 0 ... T - 1, float32 [T]."""
    t = torch.arange(recover.iterations, dtype=torch.float64)
    return (0.5 * recover.lr * (1 + torch.cos(math.pi * t / recover.iterations))).float()


def crop_lower_bounds(recover: Recover) -> np.ndarray:
    """Smallest area share of the crop in each iteration, float64 [T]: constant, or CDA's curriculum (spec 2)."""
    low = recover.crop_scale[0]
    t = np.arange(recover.iterations, dtype=np.float64)
    span = recover.milestone * recover.iterations
    if recover.curriculum == "none" or span == 0:
        return np.full(len(t), low)
    progress = t / span
    during = {
        "step": np.ones(len(t)),
        "linear": low + (1 - low) * (1 - progress),
        "cosine": low + (1 - low) * 0.5 * (1 + np.cos(math.pi * progress)),
    }[recover.curriculum]
    return np.where(t < span, during, low)


def window_table(recipe: Recipe, job: Job) -> Tensor:
    """Windows of every iteration, int32 [T, 1 or num_classes, 7]: one shared by the batch, or one an image."""
    recover, size = recipe.recover, recipe.dataset.image_size
    iterations = np.arange(recover.iterations)
    if recover.per_image_windows:
        stream, ids = Stream(recipe.seed, f"recover/windows/slot-{job.slot}"), job.classes().numpy()
    else:
        stream, ids = Stream(recipe.seed, "recover/windows"), np.array([job.index])
    rows, columns = np.repeat(iterations, len(ids)), np.tile(ids, len(iterations))
    low = crop_lower_bounds(recover)[rows]
    table = windows(stream, recover, columns, rows, size, size, scale_low=low)
    return torch.from_numpy(table).reshape(len(iterations), len(ids), 7)


class RecoverStep:
    """One iteration on static buffers, so that it can be captured; nothing in it is read by the host."""

    def __init__(self, recipe: Recipe, job: Job, teachers: Sequence[Teacher], device: torch.device):
        recover, size = recipe.recover, recipe.dataset.image_size
        self.recipe, self.recover, self.size, self.teachers = recipe, recover, size, teachers
        self.images = torch.empty(job.num_classes, 3, size, size, device=device)
        self.first, self.second = torch.empty_like(self.images), torch.empty_like(self.images)
        self.wanted = [teacher.outputs[job.classes().to(device)] for teacher in teachers]
        self.matching = [
            Matching(
                [(1.0, teacher.matched_targets())],
                layer_weights(len(teacher.layers), recover.first_layer_weight, device),
                recover.statistics_ema,
                recover.ema_start,
            )
            for teacher in teachers
        ]
        self.low, self.high = Normalization.of(recipe.dataset, device).range()
        self.windows = torch.empty_like(window_table(recipe, job), device=device)
        self.rates = learning_rates(recover).to(device)
        self.losses = torch.zeros(recover.iterations, 3, device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.load(job)

    def load(self, job: Job) -> None:
        """Resets all buffers, in place, to the beginning of a job of the same number of images."""
        classes = job.classes()
        noise = Stream(self.recipe.seed, "recover/noise").normal(
            [(int(c), job.slot) for c in classes], 3 * self.size * self.size, self.images.device
        )
        self.images.copy_(noise.view_as(self.images))
        for zeroed in (self.first, self.second, self.losses, self.step):
            zeroed.zero_()
        for wanted, teacher in zip(self.wanted, self.teachers, strict=True):
            wanted.copy_(teacher.outputs[classes.to(teacher.outputs.device)])
        for matching in self.matching:
            matching.reset()
        self.windows.copy_(window_table(self.recipe, job))

    def loss(self, images: Tensor, which: int, windows_now: Tensor) -> Tensor:
        """images [N, 3, S, S] normalised -> total, cross-entropy and weighted matching loss of teacher `which`: [3]."""
        recover, teacher = self.recover, self.teachers[which]
        views = crop(images, windows_now, self.size, dtype=teacher.dtype)
        logits, moments = teacher(views)
        entropy = F.cross_entropy(logits, self.wanted[which])
        matching = recover.match_weight * self.matching[which](moments)
        total = entropy + matching
        if recover.tv_weight or recover.l2_weight:
            variation, norm = image_prior(views)
            if recover.tv_weight:
                total = total + recover.tv_weight * variation
            if recover.l2_weight:
                total = total + recover.l2_weight * norm
        return torch.stack((total, entropy, matching))

    def __call__(self, which: int) -> None:
        """Advances images, optimiser state, loss log and step counter by one iteration through teacher `which`."""
        images = self.images.detach().requires_grad_()
        losses = self.loss(images, which, self.windows.index_select(0, self.step)[0])
        (gradient,) = torch.autograd.grad(losses[0], images)
        pixel_adam(
            self.images,
            gradient,
            self.first,
            self.second,
            self.rates.index_select(0, self.step)[0],
            (self.step[0] + 1).float(),
            betas=self.recover.betas,
            low=self.low,
            high=self.high,
        )
        self.losses.index_copy_(0, self.step, losses.detach()[None])
        self.step += 1


class Recoverer:
    """Recovers jobs one after another. Buffers and CUDA graphs are made once for each number of images."""

    def __init__(self, recipe: Recipe, teachers: Sequence[Teacher], device: torch.device):
        self.recipe, self.device = recipe, device
        self.teachers = [teacher.cast(network_dtype(recipe.recover.precision)) for teacher in teachers]
        self.graphs = Graphs(device)
        self.steps: dict[int, tuple[RecoverStep, list[Callable[[], None]]]] = {}

    def __call__(self, job: Job) -> tuple[Tensor, Tensor]:
        """Images uint8 [num_classes, 3, S, S] and losses float32 [T, 3], on the host; the teachers take turns.

        The last iterate is kept, as in SRe2L's code. Raises ValueError if it is not finite.
        """
        with arithmetic(self.recipe.recover.precision):
            if job.num_classes not in self.steps:
                self.steps[job.num_classes] = self._prepare(job)
            step, turns = self.steps[job.num_classes]
            step.load(job)
            for iteration in range(self.recipe.recover.iterations):
                turns[iteration % len(turns)]()
        losses = step.losses.cpu()
        if not bool(torch.isfinite(step.images).all()):
            raise ValueError(f"recover diverged in job {job.index}: images are not finite; try a smaller recover.lr")
        return Normalization.of(self.recipe.dataset, self.device).pixels(step.images).cpu(), losses

    def _prepare(self, job: Job) -> tuple[RecoverStep, list[Callable[[], None]]]:
        step = RecoverStep(self.recipe, job, self.teachers, self.device)

        def turn(which: int) -> Callable[[], None]:
            def advance() -> None:
                step(which)

            return advance

        turns = [self.graphs.capture(turn(which), step.step.zero_) for which in range(len(self.teachers))]
        return step, turns
