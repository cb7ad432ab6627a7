"""Batches of real images on the device: training views that the seed replays, and the evaluation square."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .datasets import Split
from .kernels.crop import crop
from .loaders.folder import cut_center, cut_window, folder_batches
from .recipe import Dataset
from .rng import Stream
from .windows import Views, windows


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

    def pixels(self, normalized: Tensor) -> Tensor:
        """The inverse, clamped and rounded to uint8 (not truncated)."""
        x = (normalized - self.offset[:, None, None]) / self.gain[:, None, None]
        return x.clamp(0, 255).round().to(torch.uint8)

    def range(self) -> tuple[Tensor, Tensor]:
        """Normalised values of black and of white, float32 [3] each."""
        return self.offset, 255 * self.gain + self.offset


def split_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Consecutive batches of `order`. A last batch of one sample joins the one before: BatchNorm cannot train on it."""
    bounds = list(range(0, len(order), batch_size))
    if len(bounds) > 1 and len(order) - bounds[-1] == 1:
        bounds.pop()
    return np.split(order, bounds[1:])


def _cut_view(sample: int, image: Image.Image, *, stream: Stream, views: Views, epoch: int, size: int) -> Image.Image:
    window = windows(stream, views, sample, epoch, image.height, image.width)[0]
    return cut_window(image, window, size)


def _cut_square(sample: int, image: Image.Image, *, resize: int, size: int) -> Image.Image:  # noqa: ARG001
    return cut_center(image, resize, size)


def training_batches(
    split: Split, dataset: Dataset, views: Views, stream: Stream, epoch: int, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of normalised views [B, 3, S, S] and labels [B]. Order and windows depend on (stream, epoch) alone."""
    normalize, size = Normalization.of(dataset, device), dataset.image_size
    order = stream.permutation(len(split), epoch)
    labels = torch.from_numpy(split.labels).to(device)
    if split.images is None:
        cut = partial(_cut_view, stream=stream, views=views, epoch=epoch, size=size)
        for pixels, file_ids in folder_batches(split.files, split_batches(order, batch_size), cut, dataset.workers):
            yield normalize(pixels.to(device)), labels[file_ids.to(device)]
        return
    _, height, width, _ = split.images.shape
    for ids in split_batches(order, batch_size):
        table = torch.from_numpy(windows(stream, views, ids, epoch, height, width))
        pixels = torch.from_numpy(split.images[ids]).to(device).permute(0, 3, 1, 2)
        x = crop(pixels, table, size, gain=normalize.gain, offset=normalize.offset)
        yield x, labels[torch.from_numpy(ids).to(device)]


def squares(split: Split, dataset: Dataset) -> Tensor:
    """Every image of the split as the evaluation transform sees it: uint8 [N, 3, S, S] on the host."""
    size = dataset.image_size
    if split.images is not None and split.images.shape[1:3] == (size, size) and dataset.resize == size:
        return torch.from_numpy(split.images).permute(0, 3, 1, 2).contiguous()
    if split.images is not None:
        made = [cut_center(Image.fromarray(image), dataset.resize, size) for image in split.images]
        return torch.from_numpy(np.stack([np.asarray(image) for image in made])).permute(0, 3, 1, 2).contiguous()
    cut = partial(_cut_square, resize=dataset.resize, size=size)
    result = torch.empty(len(split), 3, size, size, dtype=torch.uint8)
    batches = split_batches(np.arange(len(split)), 64)
    for batch, batch_ids in folder_batches(split.files, batches, cut, dataset.workers):
        result[batch_ids] = batch
    return result
