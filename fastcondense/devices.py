"""The device that a command works on, the versions of what works there, and its clock."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch

_PACKAGES = (
    *("fastcondense", "torch", "torchvision", "timm", "numpy", "triton", "pillow", "simplejpeg", "ffcv"),
    *("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def choose_device(name: str) -> torch.device:
    """auto, cpu, cuda or cuda:N; auto takes a GPU if there is one. Raises ValueError if there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"there is no device {name!r} here: auto, cpu, cuda or cuda:N") from None
    torch.backends.cudnn.deterministic = True  # the same job gives the same images
    if device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Lets glibc keep the memory of tensors up to 1 GiB that are freed, for those that come next.

    Otherwise large maps go back to the system one by one, and it hands out cleared pages, thousands of them a step: a
    recover step of 8 images of 224 pixels in bf16 took 1.2 times as long, and no less memory, and a training step with
    maps of 32 MiB 1.3 times. Nothing is changed where the user has set either threshold, or where the C library knows
    none.
    """
    if not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            library.mallopt(_M_MMAP_THRESHOLD, 2**25)
            library.mallopt(_M_MMAP_THRESHOLD, 2**30)  # older ones refuse more than 32 MiB
            library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def fastest_arithmetic(
    device: torch.device,
) -> tuple[Literal["bf16", "tf32", "fp32"], Literal["tf32", "fp32"], str]:
    """What the device multiplies fastest, the same of float32 maps, and why."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        is_native, why = major >= 8, f"compute capability {major}.{minor}"
        return ("bf16" if is_native else "tf32"), "tf32", why
    isas, why = _bf16_of_cpu()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if isas and limit and limit not in ("ALL", "DEFAULT") and not any(isa in limit for isa in isas):
        return "fp32", "fp32", f"ONEDNN_MAX_CPU_ISA {limit}"
    return ("bf16" if isas else "fp32"), "fp32", why


def _bf16_of_cpu() -> tuple[tuple[str, ...], str]:
    """Words of the oneDNN ISAs in which this CPU multiplies bf16 faster than float32, if any, and what it is called.

    AVX-512's bf16 instructions do so on AMD's CPUs alone, where they multiply twice as much as float32's; on Intel's
    they take longer.
    """
    found = torch.cpu.get_capabilities() if torch.backends.mkldnn.is_available() else {}
    if found.get("amx_bf16"):
        return ("AMX", "AVX10_2"), "a CPU with AMX"
    if found.get("avx512_bf16") and "AMD" in processor():
        return ("BF16", "FP16", "AVX10", "AMX"), "an AMD CPU with AVX-512 BF16"
    return (), "a CPU without fast bf16"


def versions() -> dict[str, str]:
    """Versions of the packages that make the numbers, by package; the names of CPU and GPU; a checkout's commit."""
    found = {"python": platform.python_version(), "cpu": processor()}
    if commit := _commit():
        found["commit"] = commit
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def processor() -> str:
    """Name of the CPU."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


@functools.cache
def _commit() -> str:
    """The commit of the checkout that this library is run from; empty if it is installed."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=10).strip()
    except (OSError, subprocess.SubprocessError):
        return ""


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
