"""The device that a command works on, the versions of what works there, and its clock."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

_PACKAGES = (
    *("fastcondense", "torch", "torchvision", "timm", "numpy", "triton", "pillow", "ffcv"),
    *("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
)


def choose_device(name: str) -> torch.device:
    """auto, cpu, cuda or cuda:N; auto takes a GPU if there is one. Raises ValueError if there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"there is no device {name!r} here") from None
    torch.backends.cudnn.deterministic = True  # the same job gives the same images
    return device


def versions() -> dict[str, str]:
    """Versions of the packages that make the numbers, by package, and the GPU's name."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


@dataclass
class Stopwatch:
    """Seconds of a block."""

    seconds: float = 0.0


@contextlib.contextmanager
def stopwatch(device: torch.device) -> Iterator[Stopwatch]:
    """Measures a block, the device's queue included."""
    watch, start = Stopwatch(), time.monotonic()
    yield watch
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    watch.seconds = time.monotonic() - start
