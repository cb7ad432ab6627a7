"""Initial images of a job, as a function of it, and the simplest of them: noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..recipe.recipe import Recipe
from ..rng import Stream
from .jobs import Job

InitialImages = Callable[[Job], Tensor]
"""Normalised images of a job, float32 [num_images, 3, S, S], on the device of the run."""


def noise(recipe: Recipe, device: torch.device) -> InitialImages:
    """Standard normal numbers, which depend on (seed, class, slot) alone (SRe2L)."""
    stream, size = Stream(recipe.seed, "recover/noise"), recipe.dataset.image_size

    def images(job: Job) -> Tensor:
        rows = list(zip(job.classes().tolist(), job.slots().tolist(), strict=True))
        return stream.normal(rows, 3 * size * size, device).view(len(rows), 3, size, size)

    return images
