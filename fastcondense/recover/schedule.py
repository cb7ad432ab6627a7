"""What is fixed before a job's first iteration: learning rates, sizes, windows, dropped layers and teachers' turns."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from ..data.jobs import Job
from ..recipe.recipe import Recipe
from ..recipe.recover import Recover
from ..rng import Stream
from ..views.windows import windows

_PRIOR_TEMPERATURE = 5.0  # of a committee, CV-DD's
Turn = tuple[tuple[int, float], ...]
"""The teachers that look at the images in an iteration, by number, and the weights of their losses."""


def learning_rates(recover: Recover) -> Tensor:
    """lr_t = lr (1 + cos(pi t / T)) / 2 for t = 0 ... T - 1, float32 [T]."""
    t = torch.arange(recover.iterations, dtype=torch.float64)
    return (0.5 * recover.lr * (1 + torch.cos(math.pi * t / recover.iterations))).float()


def stages(recipe: Recipe) -> list[tuple[int, int]]:
    """Side of the images and number of iterations of each stage: equal parts of all iterations (FADRM), or
    rounds (DELT).
    """
    recover = recipe.recover
    sides = recover.stages or (recipe.dataset.image_size,) * recover.rounds
    return [
        (side, len(part))
        for side, part in zip(sides, np.array_split(range(recover.iterations), len(sides)), strict=True)
    ]


def crop_lower_bounds(recover: Recover) -> np.ndarray:
    """Smallest area share of the crop in each iteration, float64 [T]: constant, or CDA's curriculum."""
    low = recover.crop_scale[0]
    t = np.arange(recover.iterations, dtype=np.float64)
    if recover.curriculum == "none":
        return np.full(len(t), low)
    return low + (1 - low) * 0.5 * (1 + np.cos(math.pi * (t / recover.iterations)))


def window_table(recipe: Recipe, job: Job) -> Tensor:
    """Windows of every iteration, int32 [T, 1, 7]: one shared by the batch."""
    recover = recipe.recover
    rows = np.arange(recover.iterations)[:, None]
    sizes = np.repeat(*np.array(stages(recipe)).T)[:, None]
    low = crop_lower_bounds(recover)[:, None]
    stream = Stream(recipe.seed, "recover/windows")
    return torch.from_numpy(windows(stream, recover, np.array([job.index]), rows, sizes, sizes, scale_low=low))


def live_layers(recipe: Recipe, job: Job, teacher: str, is_droppable: list[bool]) -> Tensor:
    """Which layers of a teacher are matched in each iteration, bool [T, L] (G-VBSM's drop rate)."""
    stream = Stream(recipe.seed, f"recover/drop/{teacher}")
    layers, rows = np.arange(len(is_droppable))[None, :], np.arange(recipe.recover.iterations)[:, None]
    is_dropped = stream.uniform(layers, rows, job.index)[0] < recipe.recover.drop_rate
    return torch.from_numpy(~(is_dropped & np.array(is_droppable, dtype=bool)))


def turns(recipe: Recipe, num_teachers: int, job: Job) -> list[Turn]:
    """The turns of iterations 0, 1, ... and again from the first: each teacher alone, or a committee."""
    committee = recipe.recover.committee
    if committee.size == 1:
        return [((which, 1.0),) for which in range(num_teachers)]
    known = list(itertools.combinations(range(num_teachers), committee.size))
    number = job.first_slot
    if committee.choice == "random":
        number = int(Stream(recipe.seed, "recover/committee").words(job.first_slot)[0][0])
    members = known[number % len(known)]
    priors = torch.tensor(committee.priors or [0.0] * num_teachers, dtype=torch.float64)[list(members)]
    weights = torch.softmax(priors / _PRIOR_TEMPERATURE, 0).tolist()
    return [tuple(zip(members, weights, strict=True))]
