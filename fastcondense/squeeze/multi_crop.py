"""Two views of every image, for self-supervision: windows, then colours, each a pure function of a seed.

View v of sample i in epoch e depends on (seed, v, e, i); the order of an epoch on (seed, e).
"""

from __future__ import annotations

from collections.abc import Iterator

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
from ..views.windows import windows
from .recolor import recolor

COUNT = 2  # views of an image


class TwoViews:
    """Both views of a split's images, epoch by epoch. From files, an image is decoded once a view."""

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
        self.order, self.colors = Stream(seed, f"{purpose}/order"), Stream(seed, f"{purpose}/colors")
        self.streams = [Stream(seed, f"{purpose}/windows/{view}") for view in range(COUNT)]
        self.normalize = Normalization.of(dataset, device)
        # Sample v n + i of it is view v of image i among n: a loader gives both views of a batch at once.
        self.repeated = None if split.images is not None else split.take(np.tile(np.arange(len(split)), COUNT))

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Sample ids of each batch, int64."""
        return split_batches(self.order.permutation(len(self.split), epoch), self.settings.batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, None]]:
        """Normalised views of each batch, float32 [B, 2, 3, S, S].

        With dataset.on_error "skip", images that cannot be read are missing.
        """
        made = self._from_memory(epoch) if self.repeated is None else self._from_files(epoch, self.repeated)
        return ((views, None) for views in made)

    def _from_memory(self, epoch: int) -> Iterator[Tensor]:
        assert self.split.images is not None
        _, height, width, _ = self.split.images.shape
        unit = torch.full((3,), 1 / 255, device=self.device)
        for batch in self.batches(epoch):
            pixels = torch.from_numpy(self.split.images[batch]).to(self.device).permute(0, 3, 1, 2)
            tables = [windows(stream, self.settings, batch, epoch, height, width) for stream in self.streams]
            made = [crop(pixels, torch.from_numpy(table), self.dataset.image_size, gain=unit) for table in tables]
            yield self._finish(made, batch, epoch)

    def _from_files(self, epoch: int, repeated: Split) -> Iterator[Tensor]:
        num = len(self.split)

        def windows_of(ids: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
            table = np.empty((len(ids), 7), dtype=np.int32)
            for view, stream in enumerate(self.streams):
                mine = ids // num == view
                table[mine] = windows(stream, self.settings, ids[mine] % num, epoch, heights[mine], widths[mine])
            return table

        source = open_source(repeated, self.dataset, self.device)
        ids = [np.concatenate([batch + view * num for view in range(COUNT)]) for batch in self.batches(epoch)]
        loaded = source.loader.batches(ids, Windowed(self.dataset.image_size, windows_of), source.faults)
        for pixels, read in on_device(loaded, self.device):
            by_view = read.cpu().numpy().reshape(COUNT, -1)
            yield self._finish(list((pixels.float() / 255).chunk(COUNT)), by_view[0] % num, epoch)

    def _finish(self, made: list[Tensor], ids: np.ndarray, epoch: int) -> Tensor:
        # made: views in [0, 1], [B, 3, S, S] each -> normalised, [B, 2, 3, S, S]
        colored = (recolor(x, ids, epoch, view, self.settings, self.colors).clamp(0, 1) for view, x in enumerate(made))
        return torch.stack([self.normalize(255 * x) for x in colored], 1)
