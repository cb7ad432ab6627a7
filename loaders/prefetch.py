"""Batches of a loader on the device, copied there while the network works on the one before."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Loaded = tuple[Tensor, Tensor]


def on_device(batches: Iterator[Loaded], device: torch.device) -> Iterator[Loaded]:
    """The batches' pixels and ids on `device`, in order; they belong to the caller.

    For a GPU, batches go through two pinned buffers and a stream of their own, one batch ahead of the caller. For the
    CPU they pass: the loaders decode ahead of the caller by themselves.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    buffers = [_Buffer(device, stream), _Buffer(device, stream)]
    waiting: tuple[Tensor, Tensor, torch.cuda.Event] | None = None
    for number, (pixels, ids) in enumerate(batches):
        copied = (*buffers[number % 2].copy(pixels, ids), buffers[number % 2].is_copied)
        if waiting is not None:
            yield _ready(*waiting)
        waiting = copied
    if waiting is not None:
        yield _ready(*waiting)


def _ready(pixels: Tensor, ids: Tensor, is_copied: torch.cuda.Event) -> Loaded:
    current = torch.cuda.current_stream(pixels.device)
    current.wait_event(is_copied)
    for tensor in (pixels, ids):
        tensor.record_stream(current)  # its memory must outlive what the caller starts there
    return pixels, ids


class _Buffer:
    """Pinned memory that one batch at a time goes through."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream):
        self.device, self.stream = device, stream
        self.pinned = torch.empty(0, dtype=torch.uint8)
        self.is_copied = torch.cuda.Event()

    def copy(self, pixels: Tensor, ids: Tensor) -> Loaded:
        """Starts the copy of a batch on the stream: ids first, which do not wait for the pixels' whole copy then."""
        self.is_copied.synchronize()  # of the batch before the last
        self.is_copied = torch.cuda.Event()
        if pixels.is_cuda:
            self.stream.wait_stream(torch.cuda.current_stream(pixels.device))
        else:
            if self.pinned.numel() < pixels.numel():
                self.pinned = torch.empty(pixels.numel(), dtype=torch.uint8, pin_memory=True)
            # The same strides: channels_last stays so.
            pixels = self.pinned.as_strided(pixels.shape, pixels.stride()).copy_(pixels)
        with torch.cuda.stream(self.stream):
            ids = ids.pin_memory().to(self.device, non_blocking=True)  # pageable memory would be waited for
            pixels = pixels.to(self.device, non_blocking=True)
            self.is_copied.record(self.stream)
        return pixels, ids
