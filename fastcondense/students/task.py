"""What the loop that trains any network needs to know of a student."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..labels.labels import LabelSource, TeacherLabels, hard_labels
from ..networks.train_step import Batch
from ..recipe.recipe import Recipe
from ..recipe.settings import Optimization
from ..workers.distributed import world_size


@dataclass(frozen=True)
class Task:
    """What `fit` needs to know of an arm: how it is optimised, what its batches are made from, and their loss."""

    optimization: Optimization
    batches: Callable[[int], Iterable[Any]]
    make: Callable[[Any], Batch]
    loss: Callable[[Tensor, Any], Tensor]
    is_captured: bool = False
    count: Callable[[int], int] | None = None
    """Number of batches of an epoch; None where they are of all real images."""


def why_not_captured(recipe: Recipe, source: LabelSource) -> str | None:
    """What keeps views, labels and update of a batch from being one CUDA graph, in words; None if nothing does."""
    labels = recipe.labels
    if world_size() > 1:
        return "ranks exchange gradients"
    if recipe.train.optimizer == "muon":
        return "torch.optim.Muon takes its learning rate from the host"
    if labels.tile_shuffle > 1 or labels.rand_augment[0]:
        return "labels.tile_shuffle and labels.rand_augment change images from the host"
    if source is not hard_labels and not isinstance(source, TeacherLabels):
        return "labels are read on the host, or are your own function's"
    if recipe.train.anneal[0] or recipe.train.student_temperature == "fitted":
        return "temperatures change on the host"
    if source is not hard_labels and labels.dropout:
        return "labels.dropout is seeded from the host"
    return None
