"""Seconds of a step, measured at a few numbers of images and continued as a line to others."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

REPEATS = 3


@dataclass(frozen=True)
class Timing:
    """Median seconds of a step by its number of images."""

    seconds: dict[int, float]

    def at(self, num_images: float) -> float:
        """Measured where that number was; else on the line through the two largest that were, or in proportion.

        It never goes below the time of the smallest, nor does the line fall.
        """
        if num_images in self.seconds:
            return self.seconds[int(num_images)]
        sizes = sorted(self.seconds)
        large = sizes[-1]
        slope = self.seconds[large] / large
        if len(sizes) > 1:
            small = sizes[-2]
            slope = max(0.0, self.seconds[large] - self.seconds[small]) / (large - small) or slope
        line = self.seconds[large] + slope * (num_images - large)
        return max(line, min(self.seconds.values()) if num_images > sizes[0] else 0.0, 0.0)


def time_steps(
    make: Callable[[int], Callable[[], object]], wanted: int, device: torch.device, budget: float, first: int = 4
) -> Timing:
    """Times steps of `first`, twice as many, ... images up to `wanted`, as long as `budget` seconds allow it.

    make: the step of so many images. Each runs once before it is measured. The first two sizes are measured whatever
    they take; a size that does not fit in a GPU's memory is left out.
    """
    began, seconds = time.monotonic(), dict[int, float]()
    size = min(first, wanted)
    while True:
        try:
            step = make(size)
            step()
            seconds[size] = statistics.median(_once(step, device) for _ in range(REPEATS))
        except torch.OutOfMemoryError:
            if not seconds:
                raise
            break
        if size == wanted:
            break
        larger = min(2 * size, wanted)
        expected = (REPEATS + 1) * seconds[size] * larger / size
        if len(seconds) > 1 and time.monotonic() - began + expected > budget:
            break
        size = larger
    return Timing(seconds)


def _once(step: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
