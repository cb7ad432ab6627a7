"""Where a condensed set is while it is trained on: on the device, or on the host if it does not fit there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..loaders.prefetch import on_device
from ..sets.stored_images import Images, StoredImages, read

_SMALL = 1 << 30
"""Bytes of stored images that are read into the host's memory; of more, batches are read as they are shown, which the
system keeps in its page cache as far as there is room, once for all workers of a machine."""
_SHARE = 0.5  # of the free memory; the rest is for the step: the networks' feature maps, gradients, the optimizer


@dataclass(frozen=True)
class HostImages:
    """Images, uint8 [N, 3, S, S], that stay on the host, in memory or files; `device` gets copies of the ones that a
    batch shows."""

    pixels: Images
    device: torch.device

    def rows(self, needed: Iterable[Tensor]) -> Iterator[Tensor]:
        """Copies on the device of the images of each of `needed`, int64 [n] on the host, in their order.

        For a GPU they go through pinned memory and a stream of their own, one batch ahead of the caller.
        """
        taken = ((read(self.pixels[ids]), ids[:0]) for ids in needed)
        return (pixels for pixels, _ in on_device(taken, self.device))


def place(images: Images, device: torch.device) -> Tensor | HostImages:
    """The images, uint8 [N, 3, S, S], on the device: if they take at most half of a GPU's free memory, or on a CPU if
    they are small or in memory already."""
    is_stored, is_held = isinstance(images, StoredImages), are_held(images.nbytes, device)
    if is_held or not (is_stored or device.type == "cuda"):
        return images.read(device) if isinstance(images, StoredImages) else images.to(device)
    return HostImages(read(images) if images.nbytes <= _SMALL else images, device)


def are_held(num_bytes: int, device: torch.device) -> bool:
    """Whether stored images of so many bytes lie on the device while they are trained on."""
    return num_bytes <= (_SHARE * free_bytes(device) if device.type == "cuda" else _SMALL)


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that this process can still take, what PyTorch holds without using it included."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held
