"""The views and labels of a condensed set, epoch by epoch, for a training loop that is not ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from torch import Tensor

from ..labels.labels import answers
from ..recipe.train import Train
from .students import Task


class SeenEpoch:
    """The batches of an epoch: pairs of views, float32 [B, 3, S, S], normalised, and labels, float32 [B, classes].

    It can be walked through again and again, to the same bits.
    """

    def __init__(self, task: Task, epoch: int, num_classes: int, temperature: float | None):
        self._task, self._epoch, self._num_classes, self._temperature = task, epoch, num_classes, temperature

    def __len__(self) -> int:
        assert self._task.count is not None
        return self._task.count(self._epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for item in self._task.batches(self._epoch):
            batch = self._task.make(item)
            yield batch.views, answers(batch.wanted, self._num_classes, self._temperature)


class EpochViews(Sequence[SeenEpoch]):
    """What a student of the recipe sees, epoch by epoch: views[3] is the fourth."""

    def __init__(self, task: Task, num_classes: int, temperature: float | None, epochs: int):
        self._of, self._epochs = (task, num_classes, temperature), epochs

    def __len__(self) -> int:
        return self._epochs

    @overload
    def __getitem__(self, index: int) -> SeenEpoch: ...
    @overload
    def __getitem__(self, index: slice) -> list[SeenEpoch]: ...
    def __getitem__(self, index: int | slice) -> SeenEpoch | list[SeenEpoch]:
        numbers = range(self._epochs)[index]
        task, num_classes, temperature = self._of
        if isinstance(numbers, range):
            return [SeenEpoch(task, number, num_classes, temperature) for number in numbers]
        return SeenEpoch(task, numbers, num_classes, temperature)


def check_stored(train: Train, batch_size: int | None, epochs: int | None) -> None:
    """Raises ValueError for other batches, or more epochs, than those that stored labels are of."""
    for name, asked, kept in (("batch_size", batch_size, train.batch_size), ("epochs", epochs, train.epochs)):
        if asked is not None and (asked > kept if name == "epochs" else asked != kept):
            raise ValueError(f"{name} is {asked}, and labels are stored for train.{name} {kept}")
