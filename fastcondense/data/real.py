"""Batches of real images on the device: training views that the seed replays, and the evaluation square."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..kernels.crop import crop
from ..loaders.folder import cut_center
from ..loaders.prefetch import on_device
from ..loaders.source import Centered, Windowed
from ..recipe.recover import Storage
from ..recipe.settings import Dataset
from ..recipe.shared import Views
from ..rng import Stream
from ..views.windows import windows
from .datasets import Split
from .sources import open_source

_KEPT_BYTES = 2 << 30


@dataclass(frozen=True)
class Normalization:
    """pixel in [0, 255] -> (pixel / 255 - mean) / std, a channel."""

    gain: Tensor
    offset: Tensor

    @staticmethod
    def of(dataset: Dataset, device: torch.device) -> Normalization:
        mean, std = torch.tensor(dataset.mean, dtype=torch.float64), torch.tensor(dataset.std, dtype=torch.float64)
        return Normalization((1 / (255 * std)).float().to(device), (-mean / std).float().to(device))

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 or float [N, 3, H, W] -> float32, channels_last."""
        x = pixels.float() * self.gain[:, None, None] + self.offset[:, None, None]
        return x.contiguous(memory_format=torch.channels_last)

    def levels(self, normalized: Tensor) -> Tensor:
        """The inverse: float32 from 0 to 255, clamped."""
        return ((normalized - self.offset[:, None, None]) / self.gain[:, None, None]).clamp(0, 255)

    def pixels(self, normalized: Tensor) -> Tensor:
        """The inverse, clamped and rounded to uint8 (not truncated)."""
        return self.levels(normalized).round().to(torch.uint8)

    def range(self) -> tuple[Tensor, Tensor]:
        """Normalised values of black and of white, float32 [3] each."""
        return self.offset, 255 * self.gain + self.offset


def stored(levels: Tensor, storage: Storage) -> Tensor:
    """Images with levels from 0 to 255, [N, 3, S, S], as a set keeps them: uint8 on the host.

    png: rounded. jpeg: truncated, written by Pillow as a JPEG of quality 75 and 4:2:0, its own settings and so those of
    published codes, and read again. The same bits from the same libjpeg.
    """
    if storage == "png":
        return levels.round().to(torch.uint8).cpu()
    truncated = levels.to(torch.uint8).cpu().permute(0, 2, 3, 1).numpy()
    result = np.empty_like(truncated)
    for row, image in enumerate(truncated):
        with io.BytesIO() as file:
            Image.fromarray(image).save(file, "JPEG", quality=75, subsampling="4:2:0")
            result[row] = np.asarray(Image.open(file))
    return torch.from_numpy(result).permute(0, 3, 1, 2).contiguous()


def split_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Consecutive batches of `order`. A last batch of one sample joins the one before: BatchNorm cannot train on it."""
    bounds = list(range(0, len(order), batch_size))
    if len(bounds) > 1 and len(order) - bounds[-1] == 1:
        bounds.pop()
    return np.split(order, bounds[1:])


def shares(batches: list[np.ndarray], rank: int, world: int) -> list[np.ndarray]:
    """Each batch's share of `rank` among `world` ranks: in order of rank they make up the batch.

    Raises ValueError if a batch has fewer samples than there are ranks.
    """
    if len(shortest := min(batches, key=len)) < world:
        raise ValueError(f"a batch of {len(shortest)} images cannot be shared by {world} ranks; change the batch size")
    return [np.array_split(batch, world)[rank] for batch in batches]


def training_batches(
    split: Split,
    dataset: Dataset,
    views: Views,
    stream: Stream,
    epoch: int,
    batch_size: int,
    device: torch.device,
    *,
    rank: int = 0,
    world: int = 1,
    classes: Sequence[int] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of normalised views [B, 3, S, S] and labels [B]. Order and windows depend on (stream, epoch) alone;
    with `classes`, only the images of these, in that order.

    Of every batch of `batch_size` images, `rank` gets its share.
    With dataset.on_error "skip", images that cannot be read are missing.
    """
    order = stream.part("order").permutation(len(split), epoch)
    if classes is not None:
        order = order[np.isin(split.labels[order], classes)]
    batches = shares(split_batches(order, batch_size), rank, world)
    labels = torch.from_numpy(split.labels).to(device)
    cut = Windowed(dataset.image_size, lambda ids, heights, widths: windows(stream, views, ids, epoch, heights, widths))
    for images, ids in window_batches(split, dataset, batches, cut, device):
        yield images, labels[ids]


def window_batches(
    split: Split, dataset: Dataset, batches: Sequence[np.ndarray], cut: Windowed, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised windows [B, 3, cut.size, cut.size] and sample ids [B] on `device`, for every array of ids in turn.

    With dataset.on_error "skip", images that cannot be read are missing.
    """
    normalize = Normalization.of(dataset, device)
    if split.images is None:
        source = open_source(split, dataset, device)
        for pixels, ids in on_device(source.loader.batches(batches, cut, source.faults), device):
            yield normalize(pixels), ids.to(device)
        return
    _, height, width, _ = split.images.shape
    for batch in batches:
        table = cut.windows_of(batch, np.full(len(batch), height), np.full(len(batch), width))
        pixels = torch.from_numpy(split.images[batch]).to(device).permute(0, 3, 1, 2)
        x = crop(pixels, torch.from_numpy(table), cut.size, gain=normalize.gain, offset=normalize.offset)
        yield x, torch.from_numpy(batch).to(device)


def square_batches(
    split: Split,
    dataset: Dataset,
    device: torch.device,
    batch_size: int = 128,
    *,
    ids: np.ndarray | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The split as the evaluation transform sees it, in order: uint8 [B, 3, S, S] and sample ids [B] on `device`.

    With `ids`, int64, only these samples, in their order. With dataset.on_error "skip", images that cannot be read are
    missing.
    """
    size, order = dataset.image_size, np.arange(len(split)) if ids is None else ids
    batches = np.split(order, range(batch_size, len(order), batch_size))
    if split.images is None:
        source = open_source(split, dataset, device)
        made = source.loader.batches(batches, Centered(size, dataset.resize), source.faults)
        yield from ((pixels, ids.to(device)) for pixels, ids in on_device(made, device))
        return
    is_square = split.images.shape[1:3] == (size, size) and dataset.resize == size
    for batch in batches:
        images = split.images[batch]
        if not is_square:
            cuts = (cut_center(Image.fromarray(image), dataset.resize, size) for image in images)
            images = np.stack([np.asarray(cut) for cut in cuts])
        yield torch.from_numpy(images).permute(0, 3, 1, 2).to(device), torch.from_numpy(batch).to(device)


def squares(split: Split, dataset: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """The images of `square_batches` on the host: uint8 [N, 3, S, S], contiguous, and ids of those that can be read."""
    result = torch.empty(len(split), 3, dataset.image_size, dataset.image_size, dtype=torch.uint8)
    ids: list[Tensor] = []
    count = 0
    for pixels, batch in square_batches(split, dataset, device):
        result[count : count + len(batch)] = pixels
        count += len(batch)
        ids.append(batch.cpu())
    return result[:count], torch.cat(ids) if ids else torch.zeros(0, dtype=torch.int64)


class EvaluationImages:
    """A split as the evaluation transform sees it, batch by batch: kept on the host if it is small, else read anew."""

    def __init__(self, split: Split, dataset: Dataset, device: torch.device):
        self.split, self.dataset, self.device = split, dataset, device
        self.is_small = 3 * dataset.image_size**2 * len(split) <= _KEPT_BYTES
        self._kept: tuple[Tensor, Tensor] | None = None

    def batches(self, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 [B, 3, S, S] and labels int64 [B] on the device; of `world` ranks, each has a part of the split."""
        labels = torch.from_numpy(self.split.labels).to(self.device)
        if not self.is_small:
            mine = np.array_split(np.arange(len(self.split)), world)[rank]
            made = square_batches(self.split, self.dataset, self.device, batch_size, ids=mine)
            yield from ((pixels, labels[ids]) for pixels, ids in made)
            return
        self._kept = self._kept or squares(self.split, self.dataset, self.device)
        parts = (kept.tensor_split(world)[rank].split(batch_size) for kept in self._kept)
        for pixels, ids in zip(*parts, strict=True):
            yield pixels.to(self.device), labels[ids.to(self.device)]
