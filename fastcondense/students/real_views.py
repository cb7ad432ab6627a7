"""Views of all real images, as many as a student on the condensed set sees, and made and labelled as those are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from ..data.real import squares
from ..labels.resident import place
from ..labels.view_tables import BatchTable
from ..labels.views import ReplayedViews
from ..recipe.settings import Labels
from ..rng import Stream
from ..run import Run
from ..workers.distributed import rank, world_size

Item = tuple[ReplayedViews, BatchTable]
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


def real_views(run: Run, seed: int, settings: Labels) -> Callable[[int], Iterator[Item]]:
    """The batches of an epoch: real images take the places of the condensed ones; windows, partners and boxes stay.

    Images that cannot be read are left out, where they may be (dataset.on_error).
    """
    split, stream = run.real.train, Stream(seed, "baselines/full_soft")
    count = run.recipe.shown_ipc * len(run.real.classes)

    def batches(epoch: int) -> Iterator[Item]:
        ids = ids_of_epoch(stream, len(split), count, epoch)
        taken = split.take(ids)
        pixels, read = squares(taken, run.recipe.dataset, run.device)
        run.report_skipped(taken)
        labels = torch.from_numpy(split.labels[ids])[read]
        views = ReplayedViews(place(pixels, run.device), labels.to(run.device), settings, run.normalize, seed)
        for table in views.tables(epoch, run.recipe.train, rank(), world_size()):
            yield views, table

    return batches
