"""The common instrument: what was measured on, the speed of a copy, and timings of variants that take turns."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcondense.devices import choose_device, processor

Line = dict[str, Any]

DEVICE = choose_device("auto")
_CPU_CACHE = 64e6  # bytes
_CYCLES_PER_MS = 1.8e6  # of a GPU clock, about


@dataclass(frozen=True)
class Timing:
    """Median and quartiles in milliseconds."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(milliseconds: Sequence[float]) -> Timing:
        """From at least two measurements."""
        low, median, high = statistics.quantiles(milliseconds, n=4, method="inclusive")
        return Timing(median, low, high)

    def line(self) -> Line:
        """Its part of a line of results."""
        return {
            "median_ms": float(f"{self.median:.4g}"),
            "quartiles_ms": [float(f"{self.low:.4g}"), float(f"{self.high:.4g}")],
        }


def interleaved(
    variants: dict[str, Callable[[], object]],
    repeats: int,
    warmup: int,
    device: torch.device = DEVICE,
    head_start_ms: float = 0.0,
) -> dict[str, Timing]:
    """Times the variants in turns, one call each a round, in an order that rotates from round to round.

    On a GPU, events are recorded around every call and read once a round. With a head start the GPU first spins for so
    long that the host has queued the whole round, and kernels are timed without their launches.
    """
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(warmup + repeats):
        turn = names[i % len(names) :] + names[: i % len(names)]
        if device.type == "cuda":
            if head_start_ms:
                torch.cuda._sleep(int(head_start_ms * _CYCLES_PER_MS))
            marks = {}
            for name in turn:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                variants[name]()
                end.record()
                marks[name] = (start, end)
            torch.cuda.synchronize()
            round_ms = {name: start.elapsed_time(end) for name, (start, end) in marks.items()}
        else:
            round_ms = {}
            for name in turn:
                begin = time.perf_counter()
                variants[name]()
                round_ms[name] = 1e3 * (time.perf_counter() - begin)
        if i >= warmup:
            for name in names:
                times[name].append(round_ms[name])
    return {name: Timing.of(values) for name, values in times.items()}


class Rotation:
    """Copies of the inputs, handed out in turns: so many that no cache still holds the ones that come next."""

    def __init__(self, inputs: Sequence[Tensor], device: torch.device = DEVICE):
        size = sum(x.numel() * x.element_size() for x in inputs)
        self.copies = [
            [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
            for _ in range(1 + -(-int(beyond_cache(device)) // max(size, 1)))
        ]
        self._turn = 0

    def __next__(self) -> list[Tensor]:
        self._turn = (self._turn + 1) % len(self.copies)
        return self.copies[self._turn]


def beyond_cache(device: torch.device) -> float:
    """Bytes that surely push everything older out of the last cache: three times a GPU's L2, 64 MB on the CPU."""
    return 3 * torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else _CPU_CACHE


@functools.cache
def copy_ceiling(device: torch.device = DEVICE) -> float:
    """GB/s of a large copy, bytes read and bytes written: what an operator that only moves memory can reach here."""
    size = 2**30 if device.type == "cuda" else 2**27
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = interleaved({"copy": lambda: target.copy_(source)}, 20, 3, device, 1.0)["copy"]
    return 2 * size / timing.median / 1e6


@functools.cache
def environment(device: torch.device = DEVICE) -> dict[str, Any]:
    """Device, driver, versions, commit, date and time (UTC): what a figure means nothing without."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "triton", "numba", "pillow", "ffcv", "nvidia-dali-cuda130")},
        "commit": os.environ.get("COMMIT") or _output("git", "describe", "--always", "--dirty"),
        "date": now.date().isoformat(),
        "time": now.time().isoformat("minutes"),
    }


def folder_name(device: torch.device = DEVICE) -> str:
    """What the folder of this device's results is called: "nvidia-h100-80gb-hbm3", "amd-epyc-2-cores"."""
    name = environment(device)["device"] + f" {os.cpu_count()} cores" * (device.type == "cpu")
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write(lines: Iterable[Line], out: Path | None) -> None:
    """Appends the lines as JSON to `out`, if there is one, each with the environment."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.writelines(json.dumps(line | {"environment": environment()}) + "\n" for line in lines)


def missing_compiler(device: torch.device = DEVICE) -> str | None:
    """Why torch.compile cannot work here, or None."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "gcc", "cc")):
        return "no C++ compiler"
    return "no triton" if device.type == "cuda" and _version("triton") is None else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() or None
