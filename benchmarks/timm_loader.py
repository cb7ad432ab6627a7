"""timm's own loader of image files, as `loaders.py` times it beside ours."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image

from fastcondense.vision import timm


class TimmFiles(torch.utils.data.Dataset):
    """What timm's ImageDataset gives, for a given list of files; create_loader sets its transform."""

    def __init__(self, files: list[Path]):
        self.files, self.transform = files, None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.files[k]) as image:
            return self.transform(image.convert("RGB")), 0


def timm_batches(
    files: list[Path], kind: str, batch_size: int, workers: int, size: int, resize: int, device: torch.device
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels of a round through timm.data.create_loader, as often as it is iterated over.

    Bilinear crops and flips without colour jitter, as the others; uint8 batches by timm's fast collation. On a GPU its
    prefetcher copies them there and normalises, which is part of timm's loader; on the CPU its loader is read without.
    Training leaves out the last batch if it is not full. Workers are spawned, because forked ones and numba's threads
    clash.
    """
    loader = timm.data.create_loader(
        TimmFiles(files),
        size,
        batch_size,
        is_training=kind == "train",
        color_jitter=0.0,
        interpolation="bilinear",
        crop_pct=size / resize,
        num_workers=workers,
        persistent_workers=workers > 0,
        device=device,
        pin_memory=device.type == "cuda",
    )
    loader.loader.multiprocessing_context = "spawn" if workers else None
    return loader if device.type == "cuda" else loader.loader
