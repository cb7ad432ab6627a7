"""Loss curves of many jobs as a band: their mean, and the range between them. One job is read at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..loaders.reading import naming
from ..tensor_files import read_tensors


@dataclass(frozen=True)
class LossBand:
    """Mean, lowest and highest total, cross-entropy and matching loss of jobs at P points: float64 [P, 3] each."""

    num_jobs: int
    middle: np.ndarray
    """Iteration of each of the P points, float64 [P]."""
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def read_loss_band(shards: Iterable[Path], num_points: int = 0) -> LossBand | None:
    """The band of finished jobs; None if there are none, or no iterations.

    With num_points, iterations are joined to at most so many points: a job's value there is the mean of its losses.
    """
    count = length = 0
    total, low, high = (np.zeros((0, 3)) for _ in range(3))
    bounds = np.zeros(0, dtype=int)
    for path in shards:
        with naming(path):
            losses = read_tensors(path, "losses")[0]["losses"].double().numpy()
            if losses.shape[1:] != (3,):
                raise ValueError(f"its losses are {losses.shape}, not three an iteration")
            if count and len(losses) != length:
                raise ValueError(f"it has losses of {len(losses)} iterations, those before of {length}")
        if not len(losses):
            return None
        if not count:
            length = len(losses)
            points = min(num_points or len(losses), len(losses))
            bounds = np.unique(np.linspace(0, len(losses), points + 1).round().astype(int))
            total, low, high = (np.full((len(bounds) - 1, 3), start) for start in (0.0, np.inf, -np.inf))
        values = np.add.reduceat(losses, bounds[:-1]) / np.diff(bounds)[:, None]
        total, low, high, count = total + values, np.minimum(low, values), np.maximum(high, values), count + 1
    return LossBand(count, (bounds[:-1] + bounds[1:] - 1) / 2, total / count, low, high) if count else None
