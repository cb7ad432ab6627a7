"""The images of a job while they are optimised, at one size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class Canvas:
    """Static buffers of one size: the images, their optimiser's moments, and their running mean (EDC's flatness)."""

    def __init__(self, num_images: int, side: int, device: torch.device):
        self.side = side
        self.images = torch.empty(num_images, 3, side, side, device=device)
        self.first, self.second, self.average = (torch.empty_like(self.images) for _ in range(3))

    def fill(self, images: Tensor) -> None:
        """Begins with these images, in place, enlarged or shrunk if they are of another size."""
        self.images.copy_(resized(images, self.side))
        self.average.copy_(self.images)
        self.first.zero_()
        self.second.zero_()


def resized(images: Tensor, side: int) -> Tensor:
    """Bilinear, without antialiasing, as FADRM changes sizes."""
    return images if images.shape[-1] == side else F.interpolate(images, (side, side), mode="bilinear")
