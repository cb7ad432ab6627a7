"""Replayed views of a condensed set.

View contract: what is seen of sample i in epoch e (tile, window, flip, augmentation) depends on (seed, e, i); its
mixing partner, lambda and box on (seed, e, the sample's position in the epoch's seeded order). Batch size, workers,
ranks and devices do not enter. Published code draws one lambda and box, and CIM's kind of augmentation, a batch; ours
are per position and sample, which makes that possible.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import vision
from ..data.real import Normalization, split_batches
from ..kernels.replay_crop import replay_crop
from ..recipe.settings import Labels, Optimization
from ..rng import Array, Stream
from ..sets.stored_images import Images, read
from ..views.augment import augment, augmentations
from ..views.boxes import cutmix_boxes, inside
from ..views.tiles import pick_tiles, shuffle_tiles
from ..views.windows import LEFT, TOP, windows
from .resident import HostImages
from .view_tables import BatchTable, Span, ViewBatch, ViewTable

CHUNK = 1024  # views whose tables are made at once: few enough that a GPU does not wait for them when an epoch begins


class ReplayedViews:
    """The views of a set of images in every epoch, recomputed from a seed.

    images: uint8 [N, 3, S, S] on the device where views are made, or HostImages; labels: int64 [N], on the device.
    """

    def __init__(
        self, images: Tensor | HostImages, labels: Tensor, settings: Labels, normalize: Normalization, seed: int
    ):
        self.placed = images
        self.host = images if isinstance(images, HostImages) else None
        self.images: Images = images.pixels if isinstance(images, HostImages) else images.contiguous()
        self.labels, self.settings, self.normalize = labels, settings, normalize
        self.device = normalize.gain.device
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

    def epoch(self, epoch: int, train: Optimization, rank: int = 0, world: int = 1) -> Iterator[ViewBatch]:
        """The batches of views that a student is trained on in an epoch, or the shares of a rank among `world`."""
        return (self.make(batch) for batch in self.tables(epoch, train, rank, world))

    def tables(self, epoch: int, train: Optimization, rank: int = 0, world: int = 1) -> Iterator[BatchTable]:
        """Tables that the batches of `epoch` are made from. Raises ValueError if one is too small for all ranks."""
        wholes = self.spans(epoch, train)
        mine = [share(whole, rank, world, self.unit(len(whole), train, world)) for whole in wholes]
        is_hard = epoch in train.hard_epochs
        return (replace(batch, is_hard=is_hard, epoch=epoch) for batch in self._batch_tables(wholes, mine))

    def batches(self, spans: Sequence[Span]) -> Iterator[ViewBatch]:
        """The views of some spans, one after another."""
        return (self.make(batch) for batch in self._batch_tables(spans, spans))

    def _batch_tables(self, wholes: Sequence[Span], mine: Sequence[Span]) -> Iterator[BatchTable]:
        if self.host is None:
            for whole, span, (_, table) in zip(wholes, mine, self._tables(mine), strict=True):
                yield BatchTable(table, span, whole)
            return
        ahead, now = itertools.tee(self._tables(mine))
        samples = (self._samples(table.ids, table.partners) for table, _ in ahead)
        for whole, span, (_, table), images in zip(wholes, mine, now, self.host.rows(samples), strict=True):
            yield BatchTable(table, span, whole, images)

    def unit(self, size: int, train: Optimization, world: int) -> int:
        """How many neighbours in a batch of `size` views are on one rank.

        The parts of a batch that BatchNorms see (train.accumulate) if there is one for every rank, or else the groups
        that teachers in training mode see; then neither student nor labels see how many ranks there are.
        """
        group = self.settings.batch_norm_size if self.settings.is_in_training else 1
        num_parts = len(split_batches(np.arange(size), train.part_size))
        is_parted = train.accumulate > 1 and num_parts >= world and train.part_size % group == 0
        return train.part_size if is_parted else group

    def _tables(self, spans: Sequence[Span]) -> Iterator[tuple[ViewTable, ViewTable]]:
        """The table of each span, on the host and on the device, made for some of them at a time."""
        step = max(1, CHUNK // max(map(len, spans)))
        for first in range(0, len(spans), step):
            chunk = spans[first : first + step]
            here = self.table(chunk)
            there, end = here.to(self.device), 0
            for span in chunk:
                begin, end = end, end + len(span)
                yield here.rows(begin, end), there.rows(begin, end)

    def _samples(self, ids: Tensor, partners: Tensor) -> Tensor:
        """The images that views of `ids` and `partners` show, in the order of BatchTable.images."""
        return ids if self.settings.mix == "none" else torch.cat((ids, partners))

    def spans(self, epoch: int, train: Optimization) -> list[Span]:
        """The spans of the batches of an epoch: all of its own (`split_batches`), or as many drawn from the pool.

        The pool is the beginning of all epochs' full batches; LPLD, which draws with replacement too, exchanges an
        epoch's last batch for the one before, because it has lost the partial batch.
        Epochs of hard labels need no pool: they have full batches of their own, as many.
        """
        count, size = len(self.images), train.batch_size
        if self.settings.pool == 1:
            batches = split_batches(np.arange(count), size)
            return [Span(epoch, int(batch[0]), int(batch[-1]) + 1) for batch in batches]
        num_full = full_batches(count, size)
        if epoch in train.hard_epochs:
            return [Span(epoch, begin, min(begin + size, count)) for begin in range(0, num_full * size, size)]
        num_pooled = pooled_batches(self.settings.pool, train.epochs, num_full)
        drawn = np.floor(self.pool_stream.uniform(np.arange(num_full), epoch)[0] * num_pooled).astype(np.int64)
        places = [(int(index) // num_full, int(index) % num_full * size) for index in drawn]
        return [Span(drawn_epoch, begin, min(begin + size, count)) for drawn_epoch, begin in places]

    def table(self, spans: Sequence[Span]) -> ViewTable:
        """The views of some batches as a table, one batch after another, on the host."""
        count, size, mix = len(self.images), self.images.shape[-1], self.settings.mix
        positions = np.concatenate([np.arange(span.begin, span.end) for span in spans])
        epochs = np.repeat([span.epoch for span in spans], [len(span) for span in spans])
        ids, partners = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            ids[here] = _permutation(self.order_stream, count, int(epoch))[positions[here]]
            if mix != "none":
                partners[here] = _permutation(self.partner_stream, count, int(epoch))[positions[here]]
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
            augmentations=self._augmentations(ids, epochs),
            partner_augmentations=None if mix == "none" else self._augmentations(partners, epochs),
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
        samples, seen = torch.from_numpy(ids), torch.from_numpy(self.seen_windows(ids, epoch))
        taken = None if self.host is None else read(self.images[samples]).to(self.device)
        images, rows, _ = self._prepared(epoch, samples.to(self.device), samples.to(self.device), taken)
        drawn = self._augmentations(ids, epoch)
        return self._augmented(self._crop(images, rows, seen), None if drawn is None else drawn.to(self.device))

    def make(self, batch: BatchTable) -> ViewBatch:
        """The views of a batch. Nothing is read by the host, unless labels.tile_shuffle or rand_augment want it."""
        table = batch.table
        images, rows, partner_rows = self._prepared(batch.span.epoch, table.ids, table.partners, batch.images)
        mixed = {"partners": partner_rows, "partner_windows": table.partner_windows}
        mixed |= {"share": table.share} if table.boxes is None else {"boxes": table.boxes}
        if self.settings.augment and table.boxes is not None:
            own = self._augmented(self._crop(images, rows, table.windows), table.augmentations)
            other = self._crop(images, partner_rows, table.partner_windows)
            other = self._augmented(other, table.partner_augmentations)
            views = torch.where(inside(table.boxes, own.shape[-1]), other, own)
        else:
            views = self._crop(images, rows, table.windows, **({} if self.settings.mix == "none" else mixed))
            views = self._augmented(views, table.augmentations)
        labels, partner_labels = self.labels[table.ids], self.labels[table.partners]
        what = batch.span, batch.whole, batch.is_hard, batch.epoch
        return ViewBatch(views, labels, partner_labels, table.share, *what)

    def _prepared(
        self, epoch: int, ids: Tensor, partners: Tensor, taken: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images to crop, and the rows of `ids` and of `partners` in them: the set, or copies, changed or not.

        taken: the images as BatchTable has them.
        """
        factor, (num_operations, magnitude) = self.settings.tile_shuffle, self.settings.rand_augment
        if taken is None:
            assert isinstance(self.images, Tensor)
            if factor == 1 and num_operations == 0:
                return self.images, ids, partners
            needed, rows = torch.unique(torch.stack((ids, partners)), return_inverse=True)
            images = self.images[needed]
        else:
            needed, images = torch.cat((ids, partners))[: len(taken)], taken
            rows = torch.arange(len(taken), device=taken.device).view(-1, len(ids))
        if factor > 1:
            images = shuffle_tiles(images, factor, self.shuffle_stream, needed.cpu().numpy(), epoch)
        if num_operations:
            change = vision.torchvision.transforms.v2.RandAugment(num_operations, magnitude)
            for image, sample in zip(images, needed.tolist(), strict=True):
                with self.rand_augment_stream.torch_generator(sample, epoch):
                    image.copy_(change(image))
        return images, rows[0], rows[-1]

    def _crop(self, images: Tensor, rows: Tensor, seen: Tensor, **mixed: Any) -> Tensor:
        gain, offset = self.normalize.gain, self.normalize.offset
        return replay_crop(images, rows, seen, images.shape[-1], gain=gain, offset=offset, **mixed)

    def _augmentations(self, ids: np.ndarray, epochs: Array) -> Tensor | None:
        """The table of the settings' differentiable augmentations of samples, before they are mixed."""
        operations, size = self.settings.augment, self.images.shape[-1]
        if not operations:
            return None
        return augmentations(self.augment_stream, operations, ids, epochs, size)

    def _augmented(self, views: Tensor, table: Tensor | None) -> Tensor:
        return views if table is None else augment(views, table, self.settings.augment)


def share(span: Span, rank: int, world: int, unit: int = 1) -> Span:
    """The views of a batch that are those of `rank` among `world` ranks: in order of rank they make up the batch.

    Each `unit` neighbours stay together (a last one alone joins those before), and the first ranks have more of them.
    Raises ValueError if there are fewer of them than ranks.
    """
    positions = np.arange(span.begin, span.end)
    groups = split_batches(positions, unit) if unit > 1 else list(positions[:, None])
    if len(groups) < world:
        together = f", of which {unit} belong together," if unit > 1 else ""
        raise ValueError(
            f"a batch of {len(span)} views{together} cannot be shared by {world} ranks; "
            "take fewer ranks or another train.batch_size"
        )
    mine = [groups[index] for index in np.array_split(np.arange(len(groups)), world)[rank]]
    return Span(span.epoch, int(mine[0][0]), int(mine[-1][-1]) + 1)


@functools.lru_cache(maxsize=8)
def full_batches(count: int, batch_size: int) -> int:
    """Batches of an epoch of `count` views that are drawn from a pool: the full ones, or the one that there is."""
    return max(1, count // batch_size)


def pooled_batches(share: float, epochs: int, num_full: int) -> int:
    """Batches in the pool: a share of all epochs' full ones."""
    return max(1, math.floor(share * epochs * num_full + 1e-6))  # a rounding error must cost none: 0.29 of 100 are 29


def _permutation(stream: Stream, count: int, epoch: int) -> np.ndarray:
    return stream.permutation(count, epoch)
