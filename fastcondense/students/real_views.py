"""Views of all real images: as many as a student on the condensed set sees, made and labelled as those are; or epochs
of all of them, as a teacher sees them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from ..data.real import split_batches, training_batches
from ..labels.resident import place
from ..labels.view_tables import BatchTable, Span, ViewBatch
from ..labels.views import ReplayedViews
from ..recipe.settings import Labels
from ..recipe.shared import Views
from ..recover.formation import num_shown
from ..recover.representatives import unread_squares
from ..rng import Stream
from ..run import Run
from ..workers.distributed import rank, world_size

RealBatch = tuple[ReplayedViews, BatchTable]
"""A batch's table, and what makes its views."""


def ids_of_epoch(stream: Stream, total: int, count: int, epoch: int) -> np.ndarray:
    """The real images, int64 [count] among `total`, of an epoch: one random order of all of them goes on in the next
    epochs, and then another begins.
    """
    numbers = np.arange(epoch * count, (epoch + 1) * count)
    found = np.empty(count, dtype=np.int64)
    for turn in np.unique(numbers // total):
        here = numbers // total == turn
        found[here] = stream.permutation(total, int(turn))[numbers[here] % total]
    return found


def real_views(run: Run, seed: int, settings: Labels) -> Callable[[int], Iterator[RealBatch]]:
    """The batches of an epoch: real images take the places of the condensed ones; windows, partners and boxes stay.

    Images that cannot be read are left out, where they may be (dataset.on_error).
    """
    split, stream = run.real.train, Stream(seed, "baselines/full_soft")
    count = num_shown(run.recipe, len(run.real.classes))

    def batches(epoch: int) -> Iterator[RealBatch]:
        ids = run.readable(ids_of_epoch(stream, len(split), count, epoch))
        placed, labels = place(unread_squares(run, ids), run.device), torch.from_numpy(split.labels[ids])
        views = ReplayedViews(placed, labels.to(run.device), settings, run.normalize, seed)
        for table in views.tables(epoch, run.recipe.train, rank(), world_size()):
            yield views, table

    return batches


def real_batches(run: Run, views: Views, seed: int, size: int) -> Callable[[int], Iterable[ViewBatch]]:
    """Views of all real images in an epoch, in batches of `size`, or a rank's share of them."""
    recipe, split, stream = run.recipe, run.real.train, Stream(seed, "students/full")
    bounds = np.cumsum([0, *map(len, split_batches(np.arange(len(split)), size))]).tolist()
    wholes = list(itertools.pairwise(bounds))

    def batches(epoch: int) -> Iterator[ViewBatch]:
        made = training_batches(
            split, recipe.dataset, views, stream, epoch, size, run.device, rank=rank(), world=world_size()
        )
        for (images, labels), (begin, end) in zip(made, wholes, strict=True):
            whole = Span(epoch, begin, end)
            first = begin + sum(len(part) for part in np.array_split(range(begin, end), world_size())[: rank()])
            span, share = Span(epoch, first, first + len(labels)), torch.ones(len(labels), device=labels.device)
            yield ViewBatch(images, labels, labels, share, span, whole)

    return batches
