"""Training a student as published code does it: image files, torchvision's transforms, a DataLoader, a plain loop.

Written from its description (spec sre2l_cda_scdd_rded_mdc): workers decode a JPEG, crop, flip and normalise it with
Pillow; the batch is mixed by CutMix with itself permuted, one box for all; the teacher labels it in evaluation mode;
the student learns by KL at a temperature, with AdamW, and loss and accuracy are read on the host in every step.
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
from torch.utils.data import DataLoader, Dataset

from fastcondense.recipe.settings import Dataset as DatasetSettings
from fastcondense.vision import torchvision


@dataclass(frozen=True)
class LoopStyle:
    """How the loop is run. The defaults are the published code's; bf16 is autocast, of the teacher too."""

    bf16: bool = False
    channels_last: bool = False
    reads_loss: bool = True
    compiled: bool = False


class TrainingFiles(Dataset):
    """Image files with the training transform of torchvision, as ImageFolder gives them."""

    def __init__(self, files: list[Path], classes: list[int], settings: DatasetSettings):
        self.files, self.classes, t = files, classes, torchvision.transforms
        self.transform = t.Compose(
            [
                t.RandomResizedCrop(settings.image_size),
                t.RandomHorizontalFlip(),
                t.ToTensor(),
                t.Normalize(settings.mean, settings.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, k: int) -> tuple[Tensor, int]:
        with Image.open(self.files[k]) as image:
            return self.transform(image.convert("RGB")), self.classes[k]


def cutmix(views: Tensor, generator: np.random.Generator) -> Tensor:
    """The batch with one box of all views taken from the batch permuted; lambda ~ Beta(1, 1)."""
    size, lam = views.shape[-1], generator.beta(1.0, 1.0)
    half, centre = int(size * np.sqrt(1 - lam)) // 2, generator.integers(size, size=2)
    (top, left), (bottom, right) = np.clip(centre - half, 0, size), np.clip(centre + half, 0, size)
    partners = torch.from_numpy(generator.permutation(len(views))).to(views.device)
    views[:, :, top:bottom, left:right] = views[partners, :, top:bottom, left:right]
    return views


class PublishedLoop:
    """Epochs of a student; calling it trains for one."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        files: TrainingFiles,
        batch_size: int,
        workers: int,
        temperature: float,
        device: torch.device,
        style: LoopStyle | None = None,
    ):
        self.style, self.device, self.temperature = style or LoopStyle(), device, temperature
        self.layout = torch.channels_last if self.style.channels_last else torch.contiguous_format
        self.student = student.to(device, memory_format=self.layout).train()
        self.teacher = teacher.to(device, memory_format=self.layout).eval().requires_grad_(False)
        made: list[Callable[[Tensor], Tensor]] = [self.student, self.teacher]
        self.answer, self.label = [torch.compile(net) if self.style.compiled else net for net in made]
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-3, weight_decay=0.01)
        self.generator = np.random.default_rng(0)
        self.loader = DataLoader(
            files,
            batch_size=batch_size,
            shuffle=True,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,  # forked workers and numba's threads clash
        )

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Mixed views and their own classes, on the device."""
        for views, classes in self.loader:
            views = views.to(self.device, memory_format=self.layout, non_blocking=True)
            yield cutmix(views, self.generator), classes.to(self.device, non_blocking=True)

    def read(self) -> None:
        """The epoch's views alone."""
        for _ in self.batches():
            pass

    def __call__(self) -> tuple[float, float]:
        """Mean loss, and share of views whose own class the student names; 0 and 0 where they are not read."""
        total, right, count = 0.0, 0, 0
        for views, classes in self.batches():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.style.bf16):
                with torch.no_grad():
                    wanted = F.softmax(self.label(views).float() / self.temperature, 1)
                logits = self.answer(views).float()
            loss = F.kl_div(F.log_softmax(logits / self.temperature, 1), wanted, reduction="batchmean")
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            count += len(views)
            if self.style.reads_loss:
                total += loss.item() * len(views)
                right += int((logits.argmax(1) == classes).sum().item())
        return total / count, right / count
