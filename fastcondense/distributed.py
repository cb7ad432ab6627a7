"""The processes that work on one run together: which one this is, and how many there are."""

from __future__ import annotations

from torch import distributed


def rank() -> int:
    """Of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1
