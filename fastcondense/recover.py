"""Recover: images by gradient descent through frozen teachers (SRe2L, CDA; spec sections 1.2 and 2).

The images of a job depend on the recipe, the seed and the job alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .graph import Graphs
from .initial import InitialImages, noise
from .jobs import Job
from .kernels.crop import crop
from .kernels.image_prior import image_prior
from .kernels.pixel_adam import pixel_adam
from .matching import Matching, layer_weights
from .precision import arithmetic, network_dtype
from .real import Normalization
from .recipe import Recipe
from .rng import Stream
from .settings import Recover
from .teacher import Teacher
from .windows import windows


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
    """Windows of every iteration, int32 [T, 1 or num_images, 7]: one shared by the batch, or one an image."""
    recover, size = recipe.recover, recipe.dataset.image_size
    rows = np.arange(recover.iterations)[:, None]
    low = np.broadcast_to(crop_lower_bounds(recover)[:, None], (len(rows), 1))
    if not recover.per_image_windows:
        stream = Stream(recipe.seed, "recover/windows")
        table = windows(stream, recover, np.array([job.index]), rows, size, size, scale_low=low)
        return torch.from_numpy(table)
    classes, slots = job.classes().numpy(), job.slots().numpy()
    table = np.empty((len(rows), job.num_images, 7), dtype=np.int32)
    for slot in np.unique(slots):
        stream, mine = Stream(recipe.seed, f"recover/windows/slot-{slot}"), slots == slot
        table[:, mine] = windows(stream, recover, classes[mine], rows, size, size, scale_low=low)
    return torch.from_numpy(table)


class RecoverStep:
    """One iteration on static buffers, so that it can be captured; nothing in it is read by the host."""

    def __init__(
        self,
        recipe: Recipe,
        job: Job,
        teachers: Sequence[Teacher],
        device: torch.device,
        initial: InitialImages | None = None,
    ):
        recover, size = recipe.recover, recipe.dataset.image_size
        self.recipe, self.recover, self.size, self.teachers = recipe, recover, size, teachers
        self.initial = initial or noise(recipe, device)
        self.images = torch.empty(job.num_images, 3, size, size, device=device)
        self.first, self.second = torch.empty_like(self.images), torch.empty_like(self.images)
        self.wanted = [teacher.outputs[job.classes().to(device)] for teacher in teachers]
        self.matching = [
            Matching(
                [(1.0, teacher.matched_targets())],
                layer_weights(len(teacher.layers), recover.first_layer_weight, device),
                ema=recover.statistics_ema,
                ema_start=recover.ema_start,
                distance=recover.distance,
                layer_scale=recover.layer_scale,
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
        """Resets all buffers, in place, to the beginning of a job of the same shape."""
        classes = job.classes()
        self.images.copy_(self.initial(job))
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
    """Recovers jobs one after another. Buffers and CUDA graphs are made once for each shape of a job."""

    def __init__(
        self,
        recipe: Recipe,
        teachers: Sequence[Teacher],
        device: torch.device,
        initial: InitialImages | None = None,
    ):
        self.recipe, self.initial, self.device = recipe, initial, device
        self.teachers = [teacher.cast(network_dtype(recipe.recover.precision)) for teacher in teachers]
        self.graphs = Graphs(device)
        self.steps: dict[tuple[int, int], tuple[RecoverStep, list[Callable[[], None]]]] = {}

    def __call__(self, job: Job) -> tuple[Tensor, Tensor]:
        """Images uint8 [num_images, 3, S, S] and losses float32 [T, 3], on the host; the teachers take turns.

        The last iterate is kept, as in SRe2L's code. Raises ValueError if it is not finite.
        """
        with arithmetic(self.recipe.recover.precision):
            if job.shape not in self.steps:
                self.steps[job.shape] = self._prepare(job)
            step, turns = self.steps[job.shape]
            step.load(job)
            for iteration in range(self.recipe.recover.iterations):
                turns[iteration % len(turns)]()
        losses = step.losses.cpu()
        if not bool(torch.isfinite(step.images).all()):
            raise ValueError(f"recover diverged in job {job.index}: images are not finite; try a smaller recover.lr")
        return Normalization.of(self.recipe.dataset, self.device).pixels(step.images).cpu(), losses

    def _prepare(self, job: Job) -> tuple[RecoverStep, list[Callable[[], None]]]:
        step = RecoverStep(self.recipe, job, self.teachers, self.device, self.initial)

        def turn(which: int) -> Callable[[], None]:
            def advance() -> None:
                step(which)

            return advance

        turns = [self.graphs.capture(turn(which), step.step.zero_) for which in range(len(self.teachers))]
        return step, turns
