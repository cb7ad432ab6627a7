"""Nested recover: a slot's images know those of the slots before, so that every prefix of a set is good on its own.

Cells are the images of one job: one slot of some classes. Matched are the moments of the cell, and more and more those
that it has together with the finished cells (spec sre2l_cda_scdd_rded_mdc 5.6, mode S).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..data.jobs import Job
from ..data.real import Normalization
from ..recipe.recover import Recover
from ..statistics.matching import Matching
from ..teachers.moments import Moments
from ..teachers.teacher import Teacher

Finished = Callable[[Job], Iterable[tuple[Job, Tensor]]]
"""The cells that a job's images have to know, those of the slots before it: jobs and uint8 images [N, 3, S, S]."""


@dataclass(frozen=True)
class Pool:
    """What `count` images have together at a teacher's layers: means and biased variances, float64 [S / 2] each.

    Vectors follow each other layer by layer, as in `Moments`.
    """

    count: float
    means: Tensor
    variances: Tensor

    @staticmethod
    def of(count: float, moments: Moments) -> Pool:
        vectors = [vector.double().cpu() for layer in moments for vector in layer]
        return Pool(count, torch.cat(vectors[::2]), torch.cat(vectors[1::2]))

    def moments(self, layout: Moments, device: torch.device) -> Moments:
        """As moments of the layers of `layout`, float32 on the device."""
        lengths = [len(vector) for layer in layout for vector in layer][::2]
        halves = (half.float().to(device).split(lengths) for half in (self.means, self.variances))
        pairs = iter(list(zip(*halves, strict=True)))
        return [tuple(v for _ in range(len(layer) // 2) for v in next(pairs)) for layer in layout]


def merge(pools: Sequence[Pool]) -> Pool:
    """The pool of all their images; about the common mean, so that nothing cancels (Chan, Golub and LeVeque, 1979)."""
    counts = torch.tensor([pool.count for pool in pools], dtype=torch.float64)[:, None]
    means = torch.stack([pool.means for pool in pools])
    variances = torch.stack([pool.variances for pool in pools])
    shares = counts / counts.sum()
    mean = (shares * means).sum(0)
    return Pool(float(counts.sum()), mean, (shares * (variances + (means - mean) ** 2)).sum(0))


class Unions(Protocol):
    """What a cell is matched together with."""

    def union(self, which: int, job: Job, kind: str) -> tuple[float, Pool | None]:
        """For a teacher and a kind of targets, the other cells' share of the union, below 1, and their pool if it is
        not 0. "global" targets are for cells of all classes, others for those of the job's own."""
        ...

    def weights(self, job: Job) -> tuple[Tensor, Tensor]:
        """Of the cell's own matching and of the union's in every iteration, float32 [T] each."""
        ...


class FinishedSlots:
    """Unions of a cell with all finished slots before it, whose images go through the teachers once (mode S).

    The own cell counts as much as a slot before it, as if it were there once for each block of classes: the result
    depends on finished slots alone. Raises ValueError where a slot is missing.
    """

    def __init__(self, recover: Recover, teachers: Sequence[Teacher], normalize: Normalization, finished: Finished):
        self.recover, self.teachers, self.normalize, self.finished = recover, teachers, normalize, finished
        self.pools: dict[tuple[int, int], Pool] = {}

    def union(self, which: int, job: Job, kind: str) -> tuple[float, Pool | None]:
        slot, pools = job.first_slot, []
        if slot == 0:
            return 0.0, None
        for cell, images in self.finished(job):
            if kind != "global" and cell.first_class != job.first_class:
                continue
            if (which, cell.index) not in self.pools:
                pixels = self.normalize(images.to(self.normalize.gain.device))
                self.pools[which, cell.index] = Pool.of(len(images), self.teachers[which].batch_targets(pixels))
            pools.append(self.pools[which, cell.index])
        if not pools:
            raise ValueError(f"job {job.index} of slot {slot} has no finished cells before it")
        return slot / (slot + 1), merge(pools)

    def weights(self, job: Job) -> tuple[Tensor, Tensor]:
        """beta is 0 in slot 0; otherwise it grows to `nested.weight` in the first `nested.ramp` of the iterations."""
        nested, t = self.recover.nested, np.arange(self.recover.iterations, dtype=np.float64)
        ramp = nested.ramp * self.recover.iterations
        beta = (nested.weight if job.first_slot else 0.0) * np.minimum(1.0, t / ramp if ramp else np.ones_like(t))
        return torch.from_numpy(1 - beta).float(), torch.from_numpy(beta).float()


class UnionMatching:
    """sum_k a_k rho_k D_k(union): the matching of what a cell and others have together at a teacher's layers.

    rho = 1 / (1 - share of the others) restores the gradient, as a cell moves the union by 1 / rho. matchings: one for
    each kind of targets. Buffers are static, as theirs.
    """

    def __init__(self, matchings: Sequence[Matching], kinds: Sequence[str], layout: Moments, device: torch.device):
        self.matchings, self.kinds, self.layout, self.device = list(matchings), list(kinds), layout, device
        self.shares = torch.zeros(len(kinds), device=device)
        self.others = [[torch.zeros_like(v) for layer in layout for v in layer] for _ in kinds]

    def load(self, which: int, job: Job, targets: Sequence[Moments], unions: Unions) -> None:
        """Takes a job's unions and its targets of each kind, in place."""
        for number, (kind, matching, wanted) in enumerate(zip(self.kinds, self.matchings, targets, strict=True)):
            matching.set_targets(0, wanted)
            matching.reset()
            share, pool = unions.union(which, job, kind) if self.layout else (0.0, None)
            self.shares[number] = share
            if pool is not None:
                vectors = (v for layer in pool.moments(self.layout, self.device) for v in layer)
                for buffer, vector in zip(self.others[number], vectors, strict=True):
                    buffer.copy_(vector)

    def __call__(self, moments: Moments, live: Tensor | None = None) -> Tensor:
        """moments: of the cell. A scalar, of which the gradient is that of the cell."""
        values = []
        for share, others, matching in zip(self.shares, self.others, self.matchings, strict=True):
            known, pooled = iter(others), []
            for layer in moments:
                vectors: list[Tensor] = []
                for mean, var in zip(layer[::2], layer[1::2], strict=True):
                    other_mean, other_var = next(known), next(known)
                    spread = share * (1 - share) * (mean - other_mean) ** 2
                    vectors += torch.lerp(mean, other_mean, share), torch.lerp(var, other_var, share) + spread
                pooled.append(tuple(vectors))
            values.append(matching(pooled, live) / (1 - share))
        return sum(values[1:], values[0])

    def layer_losses(self) -> Tensor:
        """What each layer added to the result of the last call, float64 [L]."""
        losses = [
            matching.layer_losses() / (1 - share) for share, matching in zip(self.shares, self.matchings, strict=True)
        ]
        return torch.stack(losses).sum(0)
