"""Replayed views of a condensed set, and the labels of those views. No label is stored.

View contract: the window of sample i in epoch e depends on (seed, e, i); its mixing partner, lambda and box on
(seed, e, the sample's position in the epoch's seeded order). Batch size, workers and devices do not enter. Published
code draws one lambda and box a batch; ours are per position, which is what makes that possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .kernels.replay_crop import replay_crop
from .kernels.soft_label import soft_label_loss
from .real import Normalization, split_batches
from .rng import Stream
from .settings import Labels, Train
from .teacher import Teacher
from .windows import windows


@dataclass(frozen=True)
class ViewBatch:
    """Mixed views [B, 3, S, S] and what they show: a share [B] of the area is class `labels`, the rest `partners`."""

    images: Tensor
    labels: Tensor
    partners: Tensor
    share: Tensor


@dataclass(frozen=True)
class ViewTable:
    """What N views show: image ids and partners, int64 [N]; windows, int32 [N, 7]; the rest as `replay_crop` takes it.

    share: float32 [N], the part of each view's area (or of its pixels' values) that is the image's own.
    """

    ids: Tensor
    partners: Tensor
    windows: Tensor
    partner_windows: Tensor
    share: Tensor
    boxes: Tensor | None

    def to(self, device: torch.device) -> ViewTable:
        """A copy there; the GPU's queue goes on meanwhile."""
        is_cuda = device.type == "cuda"
        return self._map(lambda x: (x.pin_memory() if is_cuda else x).to(device, non_blocking=True))

    def rows(self, begin: int, end: int) -> ViewTable:
        """Views begin to end - 1, in the same memory."""
        return self._map(lambda x: x[begin:end])

    def _map(self, change: Callable[[Tensor], Tensor]) -> ViewTable:
        columns: dict[str, Any] = {name: None if x is None else change(x) for name, x in vars(self).items()}
        return ViewTable(**columns)


class ReplayedViews:
    """The views of a set of images in every epoch, recomputed from a seed.

    images: uint8 [N, 3, S, S] on the device where views are made; labels: int64 [N], there too.
    """

    def __init__(self, images: Tensor, labels: Tensor, settings: Labels, normalize: Normalization, seed: int):
        self.images, self.labels = images.contiguous(), labels
        self.settings, self.normalize = settings, normalize
        self.order_stream = Stream(seed, "views/order")
        self.partner_stream = Stream(seed, "views/partners")
        self.window_stream = Stream(seed, "views/windows")
        self.mix_stream = Stream(seed, "views/mix")
        self.lambda_stream = Stream(seed, "views/lambda")

    def epoch(self, epoch: int, batch_size: int) -> Iterator[ViewBatch]:
        """All views of an epoch in its order, batched by `split_batches`."""
        table = self.table(epoch).to(self.images.device)
        for positions in split_batches(np.arange(len(self.images)), batch_size):
            yield self._batch(table.rows(int(positions[0]), int(positions[-1]) + 1))

    def table(self, epoch: int) -> ViewTable:
        """What is seen in an epoch, in its order, on the host."""
        count, size, mix = len(self.images), self.images.shape[-1], self.settings.mix
        every = np.arange(count)
        order = self.order_stream.permutation(count, epoch)
        partners = self.partner_stream.permutation(count, epoch) if mix != "none" else order
        seen = windows(self.window_stream, self.settings, every, epoch, size, size)
        lam, boxes = np.ones(count), None
        if mix != "none":
            u_apply, u_row, u_column, _ = self.mix_stream.uniform(every, epoch)
            lam = np.where(
                u_apply < self.settings.mix_probability,
                self.lambda_stream.beta(self.settings.mix_alpha, every, epoch),
                1.0,
            )
            if mix == "cutmix":
                corners = cutmix_boxes(lam, u_row, u_column, size)
                lam = 1 - (corners[:, 1] - corners[:, 0]) * (corners[:, 3] - corners[:, 2]) / size**2
                boxes = torch.from_numpy(corners).int()
        return ViewTable(
            ids=torch.from_numpy(order),
            partners=torch.from_numpy(partners),
            windows=torch.from_numpy(seen[order]),
            partner_windows=torch.from_numpy(seen[partners]),
            share=torch.from_numpy(lam).float(),
            boxes=boxes,
        )

    def crops(self, epoch: int, ids: np.ndarray) -> Tensor:
        """Normalised, unmixed crops of the samples `ids` in `epoch`: float32 [len(ids), 3, S, S]."""
        size = self.images.shape[-1]
        seen = windows(self.window_stream, self.settings, ids, epoch, size, size)
        return self._crop(torch.from_numpy(ids), torch.from_numpy(seen))

    def _batch(self, table: ViewTable) -> ViewBatch:
        mixed = {"partners": table.partners, "partner_windows": table.partner_windows}
        mixed |= {"share": table.share} if table.boxes is None else {"boxes": table.boxes}
        images = self._crop(table.ids, table.windows, **({} if self.settings.mix == "none" else mixed))
        return ViewBatch(images, self.labels[table.ids], self.labels[table.partners], table.share)

    def _crop(self, ids: Tensor, seen: Tensor, **mixed: Any) -> Tensor:
        gain, offset = self.normalize.gain, self.normalize.offset
        return replay_crop(self.images, ids, seen, self.images.shape[-1], gain=gain, offset=offset, **mixed)


def cutmix_boxes(lam: np.ndarray, u_row: np.ndarray, u_column: np.ndarray, size: int) -> np.ndarray:
    """Top, bottom, left, right (ends excluded), int64 [N, 4]: sides floor(size sqrt(1 - lambda)), clipped."""
    side = np.floor(size * np.sqrt(1 - lam)).astype(np.int64)
    corners = []
    for u in (u_row, u_column):
        centre = np.floor(u * size).astype(np.int64)
        corners += [np.clip(centre - side // 2, 0, size), np.clip(centre + side // 2, 0, size)]
    return np.stack(corners, 1)


# --- labels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """What a student should answer: the teachers' logits [E, B, classes], or None for the classes alone.

    labels, partners: int64 [B] and share: float32 [B], the classes of a view and the part of it that is `labels`.
    """

    logits: Tensor | None
    labels: Tensor
    partners: Tensor
    share: Tensor


class LabelSource(Protocol):
    """Labels of a batch of views."""

    def __call__(self, batch: ViewBatch) -> Wanted: ...


class TeacherLabels:
    """The teachers' logits, in evaluation mode."""

    def __init__(self, teachers: Sequence[Teacher]):
        self.teachers = teachers

    def __call__(self, batch: ViewBatch) -> Wanted:
        logits = torch.stack([teacher.logits(batch.images) for teacher in self.teachers])
        return Wanted(logits, batch.labels, batch.partners, batch.share)


def hard_labels(batch: ViewBatch) -> Wanted:
    """The classes themselves."""
    return Wanted(None, batch.labels, batch.partners, batch.share)


def student_loss(logits: Tensor, wanted: Wanted, train: Train) -> Tensor:
    """The recipe's loss, as `soft_label_loss` defines it; cross-entropy where there are hard labels only."""
    return soft_label_loss(
        logits,
        wanted.logits,
        wanted.labels,
        wanted.partners,
        wanted.share,
        kind="ce" if wanted.logits is None else train.loss,
        temperature=train.temperature,
        ce_weight=train.ce_weight,
    )
