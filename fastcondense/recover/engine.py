"""The engine under every objective: one job after another, resumable, its images checked and stored.

An objective says how an iteration is made (by_statistics.py, by_features.py, by_gradients.py, by_means.py); all else is
here. What a job makes depends on the recipe, the seed and the job alone, and is the same however often it was stopped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.jobs import Job
from ..data.noise import InitialImages
from ..data.real import Normalization, stored
from ..networks.precision import arithmetic
from ..recipe.recipe import Recipe
from ..sets.record import Record
from .unfinished import State, Unfinished, remaining


class Recovered(NamedTuple):
    """What a job makes, on the host: images uint8 [N, 3, S, S]; losses float32 [T, 3], in columns total, cross-entropy
    and weighted matching; and how the images formed."""

    images: Tensor
    losses: Tensor
    record: Record


RecoverJob = Callable[[Job, Unfinished | None, Job | None], Recovered]
"""Recovers a job, from its unfinished state if there is one, and may prepare the job ahead meanwhile."""


class Recoverer(ABC):
    """Recovers jobs one after another; what an objective keeps between jobs of one shape, it may use again."""

    def __init__(self, recipe: Recipe, device: torch.device):
        self.recipe, self.device = recipe, device
        self.levels = Normalization.of(recipe.dataset, device).levels

    @abstractmethod
    def begin(self, job: Job) -> None:
        """Resets everything to the beginning of a job."""

    def prepare(self, ahead: Job) -> None:  # noqa: B027
        """Begins what of the next job can be made beside this one: by default nothing."""

    @abstractmethod
    def advance(self, iteration: int) -> None:
        """Makes an iteration of the job that has begun."""

    @abstractmethod
    def state(self) -> State:
        """All that iterations have changed, not copied."""

    @abstractmethod
    def restore(self, tensors: State) -> None:
        """Goes on, in place, from a state of the job that has begun."""

    @abstractmethod
    def made(self) -> tuple[Tensor, Tensor, Record]:
        """The last iterate, as the published codes keep it, in what `levels` takes; losses; and what was recorded."""

    def __call__(self, job: Job, unfinished: Unfinished | None = None, ahead: Job | None = None) -> Recovered:
        """Recovers a job. With `unfinished` the state is saved there now and then, and gone on from, to the same bits.

        Raises ValueError if images or losses are not finite.
        """
        recover = self.recipe.recover
        with arithmetic(recover.precision, recover.reproducible):
            self.begin(job)
            if ahead is not None:
                self.prepare(ahead)
            for iteration in remaining(recover.iterations, unfinished, self.device, self.state, self.restore):
                self.advance(iteration)
            images, losses, record = self.made()
        if not bool(torch.isfinite(images).all() & torch.isfinite(losses).all()):
            raise ValueError(f"recover diverged in job {job.index}: not all is finite; try a smaller recover.lr")
        return Recovered(stored(self.levels(images), recover.storage), losses.to("cpu", copy=True), record)


def kept_as_begun(recipe: Recipe, device: torch.device, initial_of: InitialImages) -> RecoverJob:
    """A function that recovers jobs without iterations: their initial images are kept (RDED, herding, medoids)."""
    levels = Normalization.of(recipe.dataset, device).levels

    def recover_job(job: Job, _unfinished: Unfinished | None = None, _ahead: Job | None = None) -> Recovered:
        return Recovered(stored(levels(initial_of(job)), recipe.recover.storage), torch.zeros(0, 3), Record())

    return recover_job
