"""Whether memory grows with the epochs that a loader has read."""

import resource
from collections.abc import Callable
from pathlib import Path


def resident() -> int:
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def growth_over_20_epochs(epoch: Callable[[int], None]) -> int:
    """Bytes, the least of three times 20 epochs after a warm-up: allocators grow now and then, a leak every time."""
    held = []
    for k in range(68):
        epoch(k)
        held.append(resident())
    return min(held[k + 20] - held[k] for k in (7, 27, 47))


def begin_peak() -> int:
    """Begins to measure the most that the process holds from here on; returns what it holds, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident()


def peak() -> int:
    """The most bytes that the process has held since `begin_peak`."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])
