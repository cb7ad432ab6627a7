"""Memory that a step needs, as a line in the number of its images, and memory that is free."""

from __future__ import annotations

import gc
import resource
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..labels import resident

SHARES = {"cuda": 0.9, "cpu": 0.6}
"""Shares of the free memory that are used; the rest is for what is not counted. On a GPU that is scratch and
fragmentation; on the CPU the C library's heap, which held up to 1.5 times the bytes of the tensors in it."""
_CGROUP = Path("/sys/fs/cgroup")


class LiveTensors(TorchDispatchMode):
    """Bytes of the tensors that were made inside it and are alive, and the most there were since `restart`.

    What libraries take beside tensors (scratch of convolutions) is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, Any] = {}

    def __enter__(self) -> Self:
        gc.freeze()  # else each collection looks at all that PyTorch has imported, which takes most of a second
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        gc.unfreeze()
        super().__exit__(*error)

    def restart(self) -> None:
        gc.collect()  # networks that were traced are held by cycles
        self.peak = self.live

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return result

    def _note(self, tensor: Tensor) -> None:
        if tensor.is_mkldnn:  # in oneDNN's own layout, without a storage
            owner: Any = tensor
            key, size = id(tensor), tensor.numel() * tensor.element_size()
        else:
            owner = tensor.untyped_storage()
            key, size = owner._cdata, owner.nbytes()
        if key not in self.known:
            self.known[key] = weakref.finalize(owner, self._forget, key, size)
            self.live += size
            self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int) -> None:
        self.known.pop(key, None)
        self.live -= size


class Allocated:
    """Bytes of the tensors on a GPU, as PyTorch's allocator counts them: beyond what was there at the beginning."""

    def __init__(self, device: torch.device):
        self.device = device

    def __enter__(self) -> Allocated:
        torch.cuda.empty_cache()
        self.before = torch.cuda.memory_allocated(self.device)
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        torch.cuda.empty_cache()

    def restart(self) -> None:
        gc.collect()
        torch.cuda.reset_peak_memory_stats(self.device)

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) - self.before


def meter(device: torch.device) -> LiveTensors | Allocated:
    """The object that counts the bytes of tensors on the device: on a GPU measured, on the CPU computed."""
    return Allocated(device) if device.type == "cuda" else LiveTensors()


@dataclass(frozen=True)
class Footprint:
    """Bytes of a step: what it takes without an image, and what each image adds."""

    fixed: float
    per_image: float

    @staticmethod
    def of(bytes_at: Callable[[int], int], sizes: tuple[int, int] = (2, 4)) -> Footprint:
        """The line through the bytes at two numbers of images."""
        small, large = (bytes_at(count) for count in sizes)
        per_image = max(0.0, (large - small) / (sizes[1] - sizes[0]))
        return Footprint(max(0.0, large - sizes[1] * per_image), per_image)

    def at(self, num_images: float) -> int:
        return round(self.fixed + self.per_image * num_images)

    def largest(self, free: float) -> int:
        """The most images whose step fits into `free` bytes."""
        return max(0, int((free - self.fixed) // max(1.0, self.per_image)))


def usable_bytes(device: torch.device) -> int:
    """The share of the free memory of the device that jobs may be made for: SHARES of `free_bytes`."""
    return int(SHARES.get(device.type, 0.9) * free_bytes(device))


def free_bytes(device: torch.device) -> int:
    """Memory of the device that this process can still take; for the CPU that of the machine, or of its cgroup."""
    if device.type == "cuda":
        return resident.free_bytes(device)
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    try:
        limit, used = ((_CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        cached = (line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        reclaimable = next(int(size) for name, size in cached if name == "inactive_file")
        return free if limit == "max" else max(0, min(free, int(limit) - int(used) + reclaimable))
    except OSError:  # no cgroup of version 2
        return free


def resident_bytes() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
