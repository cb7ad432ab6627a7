"""How much there is to do in a run: crops, views, updates, and how jobs share out among workers."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from ..recipe.recipe import Recipe
from ..recover.formation import Formation
from .extent import Extent


def crops_a_class(recipe: Recipe, size: Extent) -> tuple[int, int]:
    """Crops of a class of average size that teachers score for mosaics, and how many of them are ranked."""
    initial, num_images = recipe.recover.initial, size.num_train // size.num_classes
    candidates = min(num_images, initial.candidates or num_images)
    chosen = min(candidates, initial.preselected or candidates)
    scored = chosen * max(1, initial.crops) + (candidates if initial.preselected else 0)
    return scored, chosen if initial.one_per_image else chosen * max(1, initial.crops)


def images_shown(recipe: Recipe, num_classes: int) -> int:
    """Images that students see views of."""
    count = recipe.shown_ipc
    if recipe.recover.objective == "gradients":
        formation = Formation(recipe.recover.gradients, recipe.ipc, recipe.dataset.image_size)
        count = int((formation.levels <= count).sum())
    return num_classes * count


def views_an_epoch(recipe: Recipe, num_classes: int) -> int:
    """Views that a student is trained on in an epoch."""
    count, batch = images_shown(recipe, num_classes), recipe.train.batch_size
    return count if recipe.labels.pool == 1 else max(1, count // batch) * min(batch, count)


def makespan(seconds: Iterable[float], num_workers: int) -> float:
    """Time until the last job is done, where each worker takes the largest job that is left."""
    ends = [0.0] * num_workers
    for duration in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)
