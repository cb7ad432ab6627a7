"""Training a student as published code does it: image files, workers that decode them, a plain loop.

Written from its description. Views: a JPEG is cropped, flipped and normalised by
Pillow and torchvision, drawn anew (`TrainingFiles`) or as FKD files say (`ReplayedFiles`); CutMix takes one box of all
views from the batch permuted. Labels: the teacher's in evaluation mode, or those of the FKD files. The student learns
by KL at a temperature, with AdamW, and the loss is read on the host in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class LoopStyle:
    """How the loop is run. The defaults are the published code's; bf16 is autocast, of the teacher too."""

    bf16: bool = False
    channels_last: bool = False
    reads_loss: bool = True
    compiled: bool = False


def write_images(folder: Path, pixels: Tensor) -> list[Path]:
    """uint8 [N, 3, S, S] as JPEG files."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number:06d}.jpg" for number in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=JPEG_QUALITY)
    return paths


def draw_box(size: int, share: float, generator: np.random.Generator) -> list[int]:
    """CutMix's box of that share of the image: top, left, bottom, right."""
    half, centre = int(size * np.sqrt(share)) // 2, generator.integers(size, size=2)
    return np.clip([*(centre - half), *(centre + half)], 0, size).tolist()


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
        stored = [
            torch.from_numpy(np.concatenate([generator.uniform(0, 1 - sides), sides], 1)).float(),
            torch.from_numpy(generator.uniform(size=len(ids)) < 0.5),
            torch.from_numpy(generator.permutation(len(ids))),
            lam,
            draw_box(size, 1 - lam, generator),
            torch.from_numpy(generator.normal(0, 3, (len(ids), num_classes))).half(),
        ]
        path = folder / f"batch_{number}.tar"
        torch.save(stored, path)
        batches.append((path, ids.tolist()))
    return batches


class TrainingFiles(Dataset):
    """Image files with the training transform of torchvision, as ImageFolder gives them."""

    def __init__(self, files: list[Path], classes: list[int], settings: DatasetSettings):
        self.files, self.classes, t = files, classes, torchvision.transforms
        crops = [t.RandomResizedCrop(settings.image_size), t.RandomHorizontalFlip()]
        self.transform = t.Compose([*crops, t.ToTensor(), t.Normalize(settings.mean, settings.std)])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, k: int) -> tuple[Tensor, int]:
        with Image.open(self.files[k]) as image:
            return self.transform(image.convert("RGB")), self.classes[k]


class ReplayedFiles(Dataset):
    """Batch by batch what FKD files say, as a worker of the published loader makes them."""

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
            sides = (image.height, image.width) * 2
            top, left, height, width = (share * side for share, side in zip(window, sides, strict=True))
            image = image.crop((round(left), round(top), round(left + width), round(top + height)))
            image = image.resize((size, size), Image.Resampling.BILINEAR)
            tensor = transforms.to_tensor(transforms.hflip(image) if flip else image)
            views.append(transforms.normalize(tensor, self.settings.mean, self.settings.std))
        return default_collate(views), permutation, box, logits


class PublishedLoop:
    """Epochs of a student; calling it trains for one. Without a teacher, labels are those of `ReplayedFiles`."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        files: TrainingFiles | ReplayedFiles,
        batch_size: int | None,
        workers: int,
        temperature: float,
        device: torch.device,
        style: LoopStyle | None = None,
    ):
        self.style, self.device, self.temperature = style or LoopStyle(), device, temperature
        self.layout = torch.channels_last if self.style.channels_last else torch.contiguous_format
        self.student = student.to(device, memory_format=self.layout).train()
        self.answer: Callable[[Tensor], Tensor] = torch.compile(self.student) if self.style.compiled else self.student
        self.label: Callable[[Tensor], Tensor] | None = None
        if teacher is not None:
            teacher = teacher.to(device, memory_format=self.layout).eval().requires_grad_(False)
            self.label = torch.compile(teacher) if self.style.compiled else teacher
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-3, weight_decay=0.01)
        self.generator = np.random.default_rng(0)
        self.loader = DataLoader(
            files,
            batch_size=batch_size,
            shuffle=batch_size is not None,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,  # forked workers and numba's threads clash
        )

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Mixed views and their own classes, or the logits of the files, on the device."""
        for views, *stored, target in self.loader:
            if not stored:
                box = draw_box(views.shape[-1], 1 - self.generator.beta(1.0, 1.0), self.generator)
                stored = [torch.from_numpy(self.generator.permutation(len(views))), box]
            views = views.to(self.device, memory_format=self.layout, non_blocking=True)
            yield cut_mixed(views, *stored), target.to(self.device, non_blocking=True)

    def read(self) -> None:
        """The epoch's views and labels alone."""
        for _ in self.batches():
            pass

    def __call__(self) -> tuple[float, float]:
        """Mean loss, and share of views whose own class the student names; 0 where they are not read or not known."""
        total, right, count = 0.0, 0, 0
        for views, target in self.batches():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.style.bf16):
                with torch.no_grad():
                    wanted = F.softmax((self.label(views) if self.label else target).float() / self.temperature, 1)
                logits = self.answer(views).float()
            loss = F.kl_div(F.log_softmax(logits / self.temperature, 1), wanted, reduction="batchmean")
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            count += len(views)
            if self.style.reads_loss:
                total += loss.item() * len(views)
                right += int((logits.argmax(1) == target).sum().item()) if self.label else 0
        return total / count, right / count


def cut_mixed(views: Tensor, partners: Tensor, box: list[int]) -> Tensor:
    """The batch with one box of all views taken from the batch permuted."""
    top, left, bottom, right = box
    views[:, :, top:bottom, left:right] = views[partners.to(views.device), :, top:bottom, left:right]
    return views
