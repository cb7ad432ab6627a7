"""Initial images of a job: noise, real training images, random or chosen, mosaics of crops, or the user's own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..data.jobs import Job
from ..data.noise import InitialImages, noise
from ..data.real import square_batches
from ..recipe.recipe import Recipe
from ..rng import Stream
from ..run import Run
from ..statistics.difficulty import grade
from ..teachers.kept import chosen
from ..teachers.teacher import Teacher
from ..user_functions import is_own
from .mosaic import mosaics
from .own import own_start
from .representatives import Rule, RuleName, read_squares, shared_representatives

_ATTEMPTS = 10  # images that are tried in a slot, where files cannot be read


def make(run: Run, teachers: Sequence[Teacher]) -> InitialImages:
    """The initial images of the kind that the recipe names (recover.initial). teachers: all of the recipe's.

    Mosaics and chosen images take a while: every class's are scored first, class by class, and finished classes are
    kept. Raises ValueError if a class has too few images for them.
    """
    kind = run.recipe.recover.initial.kind
    if is_own(kind):
        return own_start(run, kind)
    if kind == "noise":
        return noise(run.recipe, run.device)
    if kind == "difficulty":
        return hardest(run, chosen(teachers, run.recipe.recover.teachers))
    if kind == "real":
        return real(run)
    return mosaics(run, teachers) if kind == "mosaic" else chosen_real(run, cast(RuleName, kind), teachers)


def real(run: Run) -> InitialImages:
    """Random training images as the evaluation transform sees them, mirrored with probability recover.initial.flip.

    The k-th slot of a class is the k-th image of a permutation of the class, which another one follows when it ends. An
    image that cannot be read (dataset.on_error "skip") is replaced by one of yet another permutation; raises ValueError
    if ten in a row cannot.
    """
    recipe, split, size = run.recipe, run.real.train, run.recipe.dataset.image_size

    @functools.cache
    def order(label: int, turn: int, attempt: int) -> np.ndarray:
        members = split.of_class(label)
        return members[Stream(recipe.seed, f"initial/real/{turn}/{attempt}").permutation(len(members), label)]

    def sample(label: int, slot: int, attempt: int) -> int:
        turn, place = divmod(slot, len(order(label, 0, 0)))
        return int(order(label, turn, attempt)[place])

    def images(job: Job) -> Tensor:
        classes, slots = job.classes().numpy(), job.slots().numpy()
        result = torch.empty(job.num_images, 3, size, size, device=run.device)
        todo = np.arange(job.num_images)
        for attempt in range(_ATTEMPTS):
            ids = np.array([sample(int(classes[k]), int(slots[k]), attempt) for k in todo])
            wanted = np.unique(ids)
            for pixels, read in square_batches(split, recipe.dataset, run.device, ids=wanted):
                have = read.cpu().numpy()
                at = np.flatnonzero(np.isin(ids, have))
                result[todo[at]] = run.normalize(pixels)[np.searchsorted(have, ids[at])]
                todo, ids = np.delete(todo, at), np.delete(ids, at)
            if not len(todo):
                return _mirrored(recipe, job, result)
        run.report_skipped(split)
        raise ValueError(f"{_ATTEMPTS} random images in a row of class {run.real.classes[classes[todo[0]]]!r} are bad")

    return images


def chosen_real(run: Run, kind: RuleName, teachers: Sequence[Teacher]) -> InitialImages:
    """Training images that stand for their class, in recover.initial.space, as the evaluation transform sees them.

    The k-th slot of a class is the k-th image in the rule's order, mirrored with probability recover.initial.flip.
    """
    recipe, observers = run.recipe, chosen(teachers, run.recipe.recover.initial.teachers)
    rule = Rule(kind, observers[0] if recipe.recover.initial.space == "features" else None)
    order = shared_representatives(run, rule, recipe.ipc)

    def images(job: Job) -> Tensor:
        pairs = zip(job.classes().tolist(), job.slots().tolist(), strict=True)
        ids = np.array([order[label][slot] for label, slot in pairs])
        return _mirrored(recipe, job, run.normalize(read_squares(run, ids)))

    return images


def hardest(run: Run, teachers: Sequence[Teacher]) -> InitialImages:
    """For slot k the training image of group k of difficulty, as recover.teachers tell it, that is the hardest in it
    (PSM, "back"), mirrored with probability recover.initial.flip."""
    groups = grade(run, teachers)

    def images(job: Job) -> Tensor:
        pairs = zip(job.classes().tolist(), job.slots().tolist(), strict=True)
        ids = np.array([groups[label][slot][-1] for label, slot in pairs])
        return _mirrored(run.recipe, job, run.normalize(read_squares(run, ids)))

    return images


def _mirrored(recipe: Recipe, job: Job, images: Tensor) -> Tensor:
    """The job's images, some of them mirrored in place: with probability recover.initial.flip."""
    draws = Stream(recipe.seed, "initial/real/flip").uniform(job.classes().numpy(), job.slots().numpy())[0]
    is_mirrored = draws < recipe.recover.initial.flip
    images[is_mirrored] = images[is_mirrored].flip(3)
    return images
