"""How much there is to do in a run: crops, and how jobs share out among workers."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from ..recipe.recipe import Recipe
from .extent import Extent


def crops_a_class(recipe: Recipe, size: Extent) -> tuple[int, int]:
    """Crops of a class of average size that teachers score for mosaics, and how many of them are ranked."""
    initial, num_images = recipe.recover.initial, size.num_train // size.num_classes
    candidates = min(num_images, initial.candidates or num_images)
    chosen = min(candidates, initial.preselected or candidates)
    scored = chosen * max(1, initial.crops) + (candidates if initial.preselected else 0)
    return scored, chosen if initial.one_per_image else chosen * max(1, initial.crops)


def num_anchors(recipe: Recipe, size: Extent) -> int:
    """Images of a class of average size that anchors are retrieved from."""
    num_images = size.num_train // size.num_classes
    return min(num_images, recipe.recover.initial.candidates or num_images)


def makespan(seconds: Iterable[float], num_workers: int) -> float:
    """Time until the last job is done, where each worker takes the largest job that is left."""
    durations = sorted(seconds, reverse=True)
    ends = [0.0] * max(1, min(num_workers, len(durations)))
    for duration in durations:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)
