"""Images of a class that begin one after another and end together, so that some are optimised longer (DELT).

Iterations are cut into rounds. The first images of a class are optimised in all of them, the last ones in the last
alone; statistics are those of the images that have begun. Rate, crops and Adam go by the batch: one that begins late
begins with a small learning rate, crops that are small already, and Adam's count of steps (CVPR'25, arXiv 2411.19946;
the authors' repository).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..data.jobs import Job
from ..recipe.recipe import Recipe
from .schedule import stages


def first_rounds(num_slots: int, rounds: int) -> np.ndarray:
    """The round in which each of a class's images begins, int64 [slots]: as many each, one more in the first ones."""
    sizes = [len(part) for part in np.array_split(np.arange(num_slots), rounds)]
    return np.repeat(np.arange(rounds), sizes)


def begun(recipe: Recipe, job: Job, device: torch.device) -> list[Tensor | None]:
    """Of every stage, the numbers of the job's images that have begun, int64 [n]; None: all of them."""
    rounds = recipe.recover.rounds
    if rounds == 1:
        return [None] * len(stages(recipe))
    first = first_rounds(job.num_slots, rounds)[job.slots().numpy() - job.first_slot]
    return [torch.from_numpy(np.flatnonzero(first <= number)).to(device) for number in range(rounds)]
