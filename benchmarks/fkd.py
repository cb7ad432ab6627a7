"""Training on stored labels in the published way, written from its description (spec sre2l_cda_scdd_rded_mdc 1.5-1.7).

Images are JPEG files. A batch's file, torch.save'd, holds what replays its views (windows as fractions of the image,
flips, one permutation, lambda and box of CutMix) and the teacher's logits in fp16. A DataLoader's worker reads it, then
crops, resizes and normalises its images one after another with Pillow; CutMix and the update are on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, default_collate

from fastcondense.recipe.settings import Dataset as DatasetSettings
from fastcondense.vision import torchvision

JPEG_QUALITY = 75  # Pillow's, and so the published sets'


def write_images(folder: Path, pixels: Tensor) -> list[Path]:
    """uint8 [N, 3, S, S] as JPEG files."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number:06d}.jpg" for number in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=JPEG_QUALITY)
    return paths


def write_labels(
    folder: Path, count: int, size: int, batch_size: int, num_classes: int, seed: int = 0
) -> list[tuple[Path, list]]:
    """One epoch: the file of each batch and the images that it shows, of `count` images of `size` pixels.

    A file: windows float32 [B, 4] (top, left, height, width, as shares of the image), flips, permutation, lambda, the
    box's rows and columns (top, left, bottom, right), logits fp16 [B, classes]. The logits are random: reading them
    takes as long.
    """
    generator = np.random.default_rng(seed)
    batches = []
    folder.mkdir(parents=True)
    for number, ids in enumerate(np.split(generator.permutation(count), range(batch_size, count, batch_size))):
        sides = np.sqrt(generator.uniform(0.08, 1, (len(ids), 2)))
        lam = float(generator.uniform())
        centre, half = generator.integers(size, size=2), int(size * np.sqrt(1 - lam)) // 2
        box = np.clip(np.concatenate([centre - half, centre + half]), 0, size)
        stored = [
            torch.from_numpy(np.concatenate([generator.uniform(0, 1 - sides), sides], 1)).float(),
            torch.from_numpy(generator.uniform(size=len(ids)) < 0.5),
            torch.from_numpy(generator.permutation(len(ids))),
            lam,
            box.tolist(),
            torch.from_numpy(generator.normal(0, 3, (len(ids), num_classes))).half(),
        ]
        path = folder / f"batch_{number}.tar"
        torch.save(stored, path)
        batches.append((path, ids.tolist()))
    return batches


class ReplayedFiles(Dataset):
    """Batch by batch, as a worker of the published loader makes them."""

    def __init__(self, images: list[Path], batches: list[tuple[Path, list]], settings: DatasetSettings):
        self.images, self.batches, self.settings = images, batches, settings

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, list[int], Tensor]:
        """Unmixed views float32 [B, 3, S, S], the permutation, the box in pixels, logits."""
        path, ids = self.batches[number]
        windows, flips, permutation, _, box, logits = torch.load(path, weights_only=True)
        transforms, size = torchvision.transforms.functional, self.settings.image_size
        views = []
        for image_id, window, flip in zip(ids, windows.tolist(), flips.tolist(), strict=True):
            image = Image.open(self.images[image_id]).convert("RGB")
            top, left, height, width = (
                share * side for share, side in zip(window, (image.height, image.width) * 2, strict=True)
            )
            image = image.crop((round(left), round(top), round(left + width), round(top + height)))
            image = image.resize((size, size), Image.Resampling.BILINEAR)
            tensor = transforms.to_tensor(transforms.hflip(image) if flip else image)
            views.append(transforms.normalize(tensor, self.settings.mean, self.settings.std))
        return default_collate(views), permutation, box, logits


class PublishedEpoch:
    """One epoch: fp32 in torch's default layout (a GPU's convolutions in TF32), and the loss read in every step."""

    def __init__(self, net: nn.Module, files: ReplayedFiles, workers: int, temperature: float, device: torch.device):
        self.net, self.device, self.temperature = net.to(device).train(), device, temperature
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3, weight_decay=0.01)
        self.loader = DataLoader(
            files,
            batch_size=None,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
        )

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Mixed views and their logits, on the device."""
        for views, permutation, (top, left, bottom, right), logits in self.loader:
            views = views.to(self.device, non_blocking=True)
            views[:, :, top:bottom, left:right] = views[permutation.to(self.device)][:, :, top:bottom, left:right]
            yield views, logits.to(self.device, non_blocking=True)

    def read(self) -> None:
        """The epoch's views and labels alone."""
        for _ in self.batches():
            pass

    def __call__(self) -> float:
        total = 0.0
        for views, logits in self.batches():
            wanted = F.softmax(logits.float() / self.temperature, 1)
            self.optimizer.zero_grad()
            loss = F.kl_div(F.log_softmax(self.net(views) / self.temperature, 1), wanted, reduction="batchmean")
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return total
