"""Where a condensed set is while it is trained on: on the device, or on the host if it does not fit there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..loaders.prefetch import on_device

_SHARE = 0.5  # of the free memory; the rest is for the step: the networks' feature maps, gradients, the optimizer


@dataclass(frozen=True)
class HostImages:
    """Images, uint8 [N, 3, S, S], that stay on the host; `device` gets copies of the ones that a batch shows."""

    pixels: Tensor
    device: torch.device

    def rows(self, needed: Iterable[Tensor]) -> Iterator[Tensor]:
        """Copies on the device of the images of each of `needed`, int64 [n] on the host, in their order.

        For a GPU they go through pinned memory and a stream of their own, one batch ahead of the caller.
        """
        taken = ((self.pixels[ids], ids[:0]) for ids in needed)
        return (pixels for pixels, _ in on_device(taken, self.device))


def place(images: Tensor, device: torch.device) -> Tensor | HostImages:
    """The images, uint8 [N, 3, S, S], on the device, if they take at most half of the memory that is free there."""
    if device.type != "cuda" or images.nbytes <= _SHARE * free_bytes(device):
        return images.to(device)
    return HostImages(images, device)


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that this process can still take, what PyTorch holds without using it included."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held
