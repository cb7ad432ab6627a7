"""Replayed views of a condensed set, and the labels of those views. No label is stored.

View contract: the window of sample i in epoch e depends on (seed, e, i); its mixing partner, lambda and box on
(seed, e, the sample's position in the epoch's seeded order). Batch size, workers and devices do not enter. Published
code draws one lambda and box a batch; ours are per position, which is what makes that possible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .kernels.crop import crop
from .real import Normalization, split_batches
from .recipe import Labels, Train
from .rng import Stream
from .teacher import Teacher
from .windows import windows


@dataclass(frozen=True)
class ViewBatch:
    """Mixed views [B, 3, S, S] and what they show: a share [B] of the area is class `labels`, the rest `partners`."""

    images: Tensor
    labels: Tensor
    partners: Tensor
    share: Tensor


class ReplayedViews:
    """The views of a set of images in every epoch, recomputed from a seed.

    images: uint8 [N, 3, S, S] on the device where views are made; labels: int64 [N], there too.
    """

    def __init__(self, images: Tensor, labels: Tensor, settings: Labels, normalize: Normalization, seed: int):
        self.images, self.labels, self.settings, self.normalize = images, labels, settings, normalize
        self.order_stream = Stream(seed, "views/order")
        self.partner_stream = Stream(seed, "views/partners")
        self.window_stream = Stream(seed, "views/windows")
        self.mix_stream = Stream(seed, "views/mix")
        self.lambda_stream = Stream(seed, "views/lambda")

    def epoch(self, epoch: int, batch_size: int) -> Iterator[ViewBatch]:
        """All views of an epoch in its order, batched by `split_batches`."""
        count = len(self.images)
        order = self.order_stream.permutation(count, epoch)
        partners = self.partner_stream.permutation(count, epoch)
        for positions in split_batches(np.arange(count), batch_size):
            yield self._batch(epoch, positions, order[positions], partners[positions])

    def crops(self, epoch: int, ids: np.ndarray) -> Tensor:
        """Normalised, unmixed crops of the samples `ids` in `epoch`: float32 [len(ids), 3, S, S]."""
        size = self.images.shape[-1]
        table = torch.from_numpy(windows(self.window_stream, self.settings, ids, epoch, size, size))
        chosen = self.images[torch.from_numpy(ids).to(self.images.device)]
        return crop(chosen, table, size, gain=self.normalize.gain, offset=self.normalize.offset)

    def _batch(self, epoch: int, positions: np.ndarray, ids: np.ndarray, partner_ids: np.ndarray) -> ViewBatch:
        device = self.images.device
        labels = self.labels[torch.from_numpy(ids).to(device)]
        views = self.crops(epoch, ids)
        if self.settings.mix == "none":
            return ViewBatch(views, labels, labels, torch.ones(len(ids), device=device))
        partners = self.labels[torch.from_numpy(partner_ids).to(device)]
        others = self.crops(epoch, partner_ids)
        lam = self.lambda_stream.beta(self.settings.mix_alpha, positions, epoch)
        u_apply, u_row, u_column, _ = self.mix_stream.uniform(positions, epoch)
        lam = np.where(u_apply < self.settings.mix_probability, lam, 1.0)
        if self.settings.mix == "mixup":
            share = torch.from_numpy(lam).float().to(device)
            weight = share[:, None, None, None]
            return ViewBatch(weight * views + (1 - weight) * others, labels, partners, share)
        boxes = torch.from_numpy(cutmix_boxes(lam, u_row, u_column, views.shape[-1])).to(device)
        mask = inside_boxes(boxes, views.shape[-1])
        share = 1 - mask.float().mean((1, 2))
        return ViewBatch(torch.where(mask[:, None], others, views), labels, partners, share)


def cutmix_boxes(lam: np.ndarray, u_row: np.ndarray, u_column: np.ndarray, size: int) -> np.ndarray:
    """Top, bottom, left, right (ends excluded), int64 [N, 4]: sides floor(size sqrt(1 - lambda)), clipped."""
    side = np.floor(size * np.sqrt(1 - lam)).astype(np.int64)
    corners = []
    for u in (u_row, u_column):
        centre = np.floor(u * size).astype(np.int64)
        corners += [np.clip(centre - side // 2, 0, size), np.clip(centre + side // 2, 0, size)]
    return np.stack(corners, 1)


def inside_boxes(boxes: Tensor, size: int) -> Tensor:
    """Boolean [N, size, size]: whether each pixel lies in its image's box."""
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    at = torch.arange(size, device=boxes.device)
    return ((at >= top) & (at < bottom))[:, :, None] & ((at >= left) & (at < right))[:, None, :]


# --- labels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """What a student should answer, [B, classes] each: teacher logits, or None; and the hard labels, mixed by share."""

    logits: Tensor | None
    hard: Tensor


class LabelSource(Protocol):
    """Labels of a batch of views."""

    def __call__(self, batch: ViewBatch) -> Wanted: ...


def mixed_labels(batch: ViewBatch, num_classes: int) -> Tensor:
    """share * onehot(label) + (1 - share) * onehot(partner), float32 [B, classes]."""
    share = batch.share[:, None]
    return share * F.one_hot(batch.labels, num_classes) + (1 - share) * F.one_hot(batch.partners, num_classes)


class TeacherLabels:
    """Mean of the teachers' logits, in evaluation mode."""

    def __init__(self, teachers: Sequence[Teacher]):
        self.teachers = teachers

    def __call__(self, batch: ViewBatch) -> Wanted:
        logits = torch.stack([teacher.logits(batch.images) for teacher in self.teachers]).mean(0)
        return Wanted(logits, mixed_labels(batch, logits.shape[1]))


class HardLabels:
    """The classes themselves."""

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def __call__(self, batch: ViewBatch) -> Wanted:
        return Wanted(None, mixed_labels(batch, self.num_classes))


def student_loss(logits: Tensor, wanted: Wanted, train: Train) -> Tensor:
    """The recipe's loss; cross-entropy where there are hard labels only.

    kl: KL(softmax(teacher / tau) || softmax(student / tau)), mean over the batch, as SRe2L without tau^2; kl_t2: with
    it; mse_ce: mean squared difference of logits + ce_weight * cross-entropy with the hard labels (G-VBSM, EDC).
    """
    if wanted.logits is None:
        return F.cross_entropy(logits, wanted.hard)
    if train.loss == "mse_ce":
        return F.mse_loss(logits, wanted.logits) + train.ce_weight * F.cross_entropy(logits, wanted.hard)
    tau = train.temperature
    divergence = F.kl_div(
        F.log_softmax(logits / tau, 1), F.log_softmax(wanted.logits / tau, 1), reduction="batchmean", log_target=True
    )
    return divergence * tau * tau if train.loss == "kl_t2" else divergence
