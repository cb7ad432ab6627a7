"""Several views of every image, for self-supervision: windows, then colours, each a pure function of a seed.

View v of sample i in epoch e depends on (seed, v, e, i); the order of an epoch on (seed, e).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..data.datasets import Split
from ..data.real import Normalization, split_batches
from ..data.sources import open_source
from ..kernels.crop import crop
from ..loaders.prefetch import on_device
from ..loaders.source import Windowed
from ..recipe.settings import Dataset, SelfSupervision
from ..rng import Stream
from ..views.windows import Views, windows
from .recolor import recolor


@dataclass(frozen=True)
class Crops:
    """`count` views of an image with `size` pixels a side."""

    count: int
    size: int
    views: Views


def crops(settings: SelfSupervision, size: int) -> list[Crops]:
    """Two views of the whole size, and DINO's small ones."""
    groups = [Crops(2, size, settings)]
    if settings.method == "dino" and settings.dino.local_crops:
        local = replace(settings, crop_scale=settings.dino.local_scale, padding=0)
        groups.append(Crops(settings.dino.local_crops, settings.dino.local_size, local))
    return groups


def unpack(rows: Tensor, groups: Sequence[Crops]) -> list[Tensor]:
    """Rows of `MultiCrop` -> for each group its views, [B, count, 3, size, size]."""
    parts = rows.split([group.count * 3 * group.size**2 for group in groups], 1)
    return [part.unflatten(1, (g.count, 3, g.size, g.size)) for part, g in zip(parts, groups, strict=True)]


class MultiCrop:
    """All views of a split, epoch by epoch. From files, an image is decoded once a view."""

    def __init__(
        self,
        split: Split,
        dataset: Dataset,
        settings: SelfSupervision,
        seed: int,
        purpose: str,
        device: torch.device,
    ):
        self.split, self.dataset, self.settings, self.device = split, dataset, settings, device
        self.groups = crops(settings, dataset.image_size)
        self.order, self.colors = Stream(seed, f"{purpose}/order"), Stream(seed, f"{purpose}/colors")
        num_views = sum(group.count for group in self.groups)
        self.streams = [Stream(seed, f"{purpose}/windows/{view}") for view in range(num_views)]
        self.normalize = Normalization.of(dataset, device)
        # Sample v n + i of these is view v of a group, of image i among n: a loader gives all views of a batch at once.
        self.repeated = [
            None if split.images is not None else split.take(np.tile(np.arange(len(split)), group.count))
            for group in self.groups
        ]

    @property
    def splits(self) -> list[Split]:
        """The splits that files are read from."""
        return [split for split in self.repeated if split is not None]

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Sample ids of each batch, int64."""
        return split_batches(self.order.permutation(len(self.split), epoch), self.settings.batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, None]]:
        """Normalised views of each batch, a row a sample: float32 [B, sum of count * 3 * size^2].

        With dataset.on_error "skip", images that cannot be read are missing.
        """
        first, sources = 0, []
        for group, repeated in zip(self.groups, self.repeated, strict=True):
            cut = self._from_memory if repeated is None else self._from_files
            sources.append(cut(group, first, epoch, repeated))
            first += group.count
        for made in zip(*sources, strict=True):
            yield torch.cat([views.flatten(1) for views in made], 1), None

    def _from_memory(self, group: Crops, first: int, epoch: int, _: Split | None) -> Iterator[Tensor]:
        assert self.split.images is not None
        _, height, width, _ = self.split.images.shape
        unit = torch.full((3,), 1 / 255, device=self.device)
        for batch in self.batches(epoch):
            pixels = torch.from_numpy(self.split.images[batch]).to(self.device).permute(0, 3, 1, 2)
            made = []
            for view in range(first, first + group.count):
                table = windows(self.streams[view], group.views, batch, epoch, height, width)
                made.append(crop(pixels, torch.from_numpy(table), group.size, gain=unit))
            yield self._finish(made, batch, first, epoch)

    def _from_files(self, group: Crops, first: int, epoch: int, repeated: Split | None) -> Iterator[Tensor]:
        assert repeated is not None
        count, num = group.count, len(self.split)

        def windows_of(ids: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
            table = np.empty((len(ids), 7), dtype=np.int32)
            for view in range(count):
                mine = ids // num == view
                stream = self.streams[first + view]
                table[mine] = windows(stream, group.views, ids[mine] % num, epoch, heights[mine], widths[mine])
            return table

        source = open_source(repeated, self.dataset, self.device)
        ids = [np.concatenate([batch + view * num for view in range(count)]) for batch in self.batches(epoch)]
        loaded = source.loader.batches(ids, Windowed(group.size, windows_of), source.faults)
        for pixels, read in on_device(loaded, self.device):
            by_view = read.cpu().numpy().reshape(count, -1)
            yield self._finish(list((pixels.float() / 255).chunk(count)), by_view[0] % num, first, epoch)

    def _finish(self, made: list[Tensor], ids: np.ndarray, first: int, epoch: int) -> Tensor:
        # made: views in [0, 1], [B, 3, size, size] each -> normalised, [B, count, 3, size, size]
        colored = (
            recolor(x, ids, epoch, first + k, self.settings, self.colors).clamp(0, 1) for k, x in enumerate(made)
        )
        return torch.stack([self.normalize(255 * x) for x in colored], 1)
