"""What batches of views are made from: which images, which windows of them, and how they are mixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """A batch of views: the positions `begin` to `end` - 1 of an epoch's order."""

    epoch: int
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class ViewBatch:
    """Mixed views [B, 3, S, S] and what they show: a share [B] of the area is class `labels`, the rest `partners`.

    span: which views they are; in whatever epoch they are trained on, they are the same. whole: those of all ranks, of
    which they are this rank's; None: the same. is_hard: their labels are the classes (train.hard_share).
    """

    images: Tensor
    labels: Tensor
    partners: Tensor
    share: Tensor
    span: Span
    whole: Span | None = None
    is_hard: bool = False
    epoch: int = 0


@dataclass(frozen=True)
class ViewTable:
    """What N views show: image ids and partners, int64 [N]; windows, int32 [N, 7]; the rest as `replay_crop` takes it.

    share: float32 [N], the part of each view's area (or of its pixels' values) that is the image's own. augmentations,
    partner_augmentations: float32 [N, COLUMNS], as `augment` takes them.
    """

    ids: Tensor
    partners: Tensor
    windows: Tensor
    partner_windows: Tensor
    share: Tensor
    boxes: Tensor | None = None
    augmentations: Tensor | None = None
    partner_augmentations: Tensor | None = None

    def to(self, device: torch.device) -> ViewTable:
        """A copy there; the GPU's queue goes on meanwhile."""
        is_cuda = device.type == "cuda"
        return self._map(lambda x: (x.pin_memory() if is_cuda else x).to(device, non_blocking=True))

    def rows(self, begin: int, end: int) -> ViewTable:
        """Views begin to end - 1, in the same memory."""
        return self._map(lambda x: x[begin:end])

    def clone(self) -> ViewTable:
        """A copy in its own memory."""
        return self._map(torch.clone)

    def copy_(self, other: ViewTable) -> None:
        """Overwrites it, in place, with a table of as many views."""
        for name, column in vars(self).items():
            if column is not None:
                column.copy_(getattr(other, name))

    def _map(self, change: Callable[[Tensor], Tensor]) -> ViewTable:
        columns: dict[str, Any] = {name: None if x is None else change(x) for name, x in vars(self).items()}
        return ViewTable(**columns)


@dataclass(frozen=True)
class BatchTable:
    """All that a batch of views is made from, on the device: nothing else is needed from the host.

    span: which views, those of one rank; whole: those of all ranks. images: uint8 copies of the images `table.ids`, and
    behind them of the partners if views are mixed; None where the whole set is on the device. is_hard, epoch: as
    ViewBatch's.
    """

    table: ViewTable
    span: Span
    whole: Span
    images: Tensor | None = None
    is_hard: bool = False
    epoch: int = 0

    @property
    def shape(self) -> tuple[int, int, bool]:
        """Numbers of views, here and on all ranks, and kind of labels: what differs where buffers or steps do."""
        return len(self.span), len(self.whole), self.is_hard

    @property
    def num_views(self) -> int:
        """Number of views on all ranks."""
        return len(self.whole)

    def clone(self) -> BatchTable:
        """A copy in its own memory."""
        return replace(self, table=self.table.clone(), images=None if self.images is None else self.images.clone())

    def copy_(self, other: BatchTable) -> None:
        """Overwrites its tensors, in place, with those of a batch of the same shape; span and whole stay."""
        self.table.copy_(other.table)
        if self.images is not None and other.images is not None:
            self.images.copy_(other.images)
