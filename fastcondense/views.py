"""Replayed views of a condensed set.

View contract: what is seen of sample i in epoch e (tile, window, flip, augmentation) depends on (seed, e, i); its
mixing partner, lambda and box on (seed, e, the sample's position in the epoch's seeded order). Batch size, workers and
devices do not enter. Published code draws one lambda and box, and CIM's kind of augmentation, a batch; ours are per
position and sample, which makes that possible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .diff_augment import augment, augmentations
from .kernels.replay_crop import replay_crop
from .real import Normalization, split_batches
from .rng import Array, Stream
from .settings import Labels, Optimization
from .tiles import pick_tiles, shuffle_tiles
from .vision import torchvision
from .windows import LEFT, TOP, windows


@dataclass(frozen=True)
class Span:
    """A batch of views: the positions `begin` to `end` - 1 of an epoch's order."""

    epoch: int
    begin: int
    end: int


@dataclass(frozen=True)
class ViewBatch:
    """Mixed views [B, 3, S, S] and what they show: a share [B] of the area is class `labels`, the rest `partners`.

    span: which views they are; in whatever epoch they are trained on, they are the same.
    """

    images: Tensor
    labels: Tensor
    partners: Tensor
    share: Tensor
    span: Span


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
        self.pool_stream = Stream(seed, "views/pool")
        self.shuffle_stream = Stream(seed, "views/tile-shuffle")
        self.pick_stream = Stream(seed, "views/tile-pick")
        self.rand_augment_stream = Stream(seed, "views/rand-augment")
        self.augment_stream = Stream(seed, "views/augment")

    def epoch(self, epoch: int, train: Optimization) -> Iterator[ViewBatch]:
        """The batches of views that a student is trained on in an epoch."""
        return self.batches(self.spans(epoch, train))

    def batches(self, spans: Sequence[Span]) -> Iterator[ViewBatch]:
        """The batches of views of these spans."""
        table, end = self.table(spans).to(self.images.device), 0
        for span in spans:
            begin, end = end, end + span.end - span.begin
            yield self._batch(table.rows(begin, end), span)

    def spans(self, epoch: int, train: Optimization) -> list[Span]:
        """Which batches those are: all of the epoch's own (`split_batches`), or as many drawn from the pool.

        The pool is the beginning of all epochs' full batches; LPLD, which draws with replacement too, exchanges an
        epoch's last batch for the one before, because it has lost the partial batch (spec fadrm_cvdd_cim_lpld 5.4).
        """
        count, size = len(self.images), train.batch_size
        if self.settings.pool == 1:
            batches = split_batches(np.arange(count), size)
            return [Span(epoch, int(batch[0]), int(batch[-1]) + 1) for batch in batches]
        num_full = max(1, count // size)
        # a share's rounding error must not cost a batch: 0.29 of 100 are 29
        num_pooled = max(1, math.floor(self.settings.pool * train.epochs * num_full + 1e-6))
        drawn = np.floor(self.pool_stream.uniform(np.arange(num_full), epoch)[0] * num_pooled).astype(np.int64)
        places = [(int(index) // num_full, int(index) % num_full * size) for index in drawn]
        return [Span(drawn_epoch, begin, min(begin + size, count)) for drawn_epoch, begin in places]

    def table(self, spans: Sequence[Span]) -> ViewTable:
        """What is seen in some batches, one after another, on the host."""
        count, size, mix = len(self.images), self.images.shape[-1], self.settings.mix
        positions = np.concatenate([np.arange(span.begin, span.end) for span in spans])
        epochs = np.repeat([span.epoch for span in spans], [span.end - span.begin for span in spans])
        ids, partners = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            ids[here] = self.order_stream.permutation(count, int(epoch))[positions[here]]
            if mix != "none":
                partners[here] = self.partner_stream.permutation(count, int(epoch))[positions[here]]
        if mix == "none":
            partners = ids
        views, rows = np.unique(np.stack((epochs * count + ids, epochs * count + partners)), return_inverse=True)
        seen = torch.from_numpy(self.seen_windows(views % count, views // count)[rows])
        lam, boxes = np.ones(len(ids)), None
        if mix != "none":
            u_apply, u_row, u_column, _ = self.mix_stream.uniform(positions, epochs)
            lam = np.where(
                u_apply < self.settings.mix_probability,
                self.lambda_stream.beta(self.settings.mix_alpha, positions, epochs),
                1.0,
            )
            if mix == "cutmix":
                corners = cutmix_boxes(lam, u_row, u_column, size)
                lam = 1 - (corners[:, 1] - corners[:, 0]) * (corners[:, 3] - corners[:, 2]) / size**2
                boxes = torch.from_numpy(corners).int()
        return ViewTable(
            ids=torch.from_numpy(ids),
            partners=torch.from_numpy(partners),
            windows=seen[0],
            partner_windows=seen[1],
            share=torch.from_numpy(lam).float(),
            boxes=boxes,
        )

    def seen_windows(self, ids: np.ndarray, epoch: Array) -> np.ndarray:
        """Windows of samples in an epoch, or in one a sample: int32 [N, 7], in the image or in one of its tiles."""
        tile = self.settings.tile_pick
        top, left, height, width = pick_tiles(tile, self.pick_stream, ids, epoch, self.images.shape[-1])
        table = windows(self.window_stream, self.settings, ids, epoch, height, width)
        table[:, TOP] += top
        table[:, LEFT] += left
        return table

    def crops(self, epoch: int, ids: np.ndarray) -> Tensor:
        """Normalised, unmixed views of the samples `ids` in `epoch`: float32 [len(ids), 3, S, S]."""
        samples, seen = torch.from_numpy(ids).to(self.images.device), torch.from_numpy(self.seen_windows(ids, epoch))
        images, rows, _ = self._prepared(epoch, samples, samples)
        return self._augmented(self._crop(images, rows, seen), epoch, samples)

    def _batch(self, table: ViewTable, span: Span) -> ViewBatch:
        images, rows, partner_rows = self._prepared(span.epoch, table.ids, table.partners)
        mixed = {"partners": partner_rows, "partner_windows": table.partner_windows}
        mixed |= {"share": table.share} if table.boxes is None else {"boxes": table.boxes}
        if self.settings.augment and table.boxes is not None:
            own = self._augmented(self._crop(images, rows, table.windows), span.epoch, table.ids)
            other = self._augmented(self._crop(images, partner_rows, table.partner_windows), span.epoch, table.partners)
            views = torch.where(inside(table.boxes, own.shape[-1]), other, own)
        else:
            views = self._crop(images, rows, table.windows, **({} if self.settings.mix == "none" else mixed))
            views = self._augmented(views, span.epoch, table.ids)
        return ViewBatch(views, self.labels[table.ids], self.labels[table.partners], table.share, span)

    def _prepared(self, epoch: int, ids: Tensor, partners: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images to crop, and the rows of `ids` and of `partners` in them: the set, or changed copies of those."""
        factor, (num_operations, magnitude) = self.settings.tile_shuffle, self.settings.rand_augment
        if factor == 1 and num_operations == 0:
            return self.images, ids, partners
        needed, rows = torch.unique(torch.stack((ids, partners)), return_inverse=True)
        images, samples = self.images[needed], needed.cpu().numpy()
        if factor > 1:
            images = shuffle_tiles(images, factor, self.shuffle_stream, samples, epoch)
        if num_operations:
            change = torchvision.transforms.v2.RandAugment(num_operations, magnitude)
            for image, sample in zip(images, samples, strict=True):
                with self.rand_augment_stream.torch_generator(int(sample), epoch):
                    image.copy_(change(image))
        return images, rows[0], rows[1]

    def _crop(self, images: Tensor, rows: Tensor, seen: Tensor, **mixed: Any) -> Tensor:
        gain, offset = self.normalize.gain, self.normalize.offset
        return replay_crop(images, rows, seen, images.shape[-1], gain=gain, offset=offset, **mixed)

    def _augmented(self, views: Tensor, epoch: int, ids: Tensor) -> Tensor:
        """The differentiable augmentations of the settings, of views that are not mixed yet."""
        operations = self.settings.augment
        if not operations:
            return views
        table = augmentations(self.augment_stream, operations, ids.cpu().numpy(), epoch, views.shape[-1])
        return augment(views, table.to(views.device), operations)


def inside(boxes: Tensor, size: int) -> Tensor:
    """Which pixels lie in boxes [N, 4] of top, bottom, left, right (ends excluded): bool [N, 1, size, size]."""
    at, (top, bottom, left, right) = torch.arange(size, device=boxes.device), boxes[:, :, None].unbind(1)
    rows, columns = (at >= top) & (at < bottom), (at >= left) & (at < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def cutmix_boxes(lam: np.ndarray, u_row: np.ndarray, u_column: np.ndarray, size: int) -> np.ndarray:
    """Top, bottom, left, right (ends excluded), int64 [N, 4]: sides floor(size sqrt(1 - lambda)), clipped."""
    side = np.floor(size * np.sqrt(1 - lam)).astype(np.int64)
    corners = []
    for u in (u_row, u_column):
        centre = np.floor(u * size).astype(np.int64)
        corners += [np.clip(centre - side // 2, 0, size), np.clip(centre + side // 2, 0, size)]
    return np.stack(corners, 1)
