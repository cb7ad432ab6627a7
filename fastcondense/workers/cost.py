"""What a stage costs: seconds times workers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from ..log import Log
from ..words import seconds_in_words
from .distributed import world_size

_inner: list[float] = []
"""Seconds of the stages inside each stage that runs in this process."""


def cost_unit(device: str) -> str:
    """The name of a worker's hours on a device of that kind."""
    return "GPU-hours" if device == "cuda" else "worker-hours"


@contextlib.contextmanager
def cost(log: Log, device: str, stage: str) -> Iterator[None]:
    """Tells how long a stage took when it ends, however it ends, and logs its cost: seconds times workers, in hours.

    A stage inside another counts for itself alone.
    """
    _inner.append(0.0)
    start = time.monotonic()
    try:
        yield
    finally:
        seconds = time.monotonic() - start
        own = seconds - _inner.pop()
        if _inner:
            _inner[-1] += seconds
        workers = world_size()
        hours, unit = own * workers / 3600, cost_unit(device)
        log.event("cost", stage=stage, seconds=round(own, 3), workers=workers, hours=hours, unit=unit)
        if own >= 1:
            log.tell(f"{stage}: {seconds_in_words(own)}" + f" on {workers} workers" * (workers > 1))
