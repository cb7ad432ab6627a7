"""Nested recover: a slot's images know those of the slots before, so that every prefix of a set is good on its own.

Cells are the images of one job: one slot of some classes. Matched are the moments of the cell, and more and more those
that it has together with the finished cells (spec sre2l_cda_scdd_rded_mdc 5.6, mode S).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .jobs import Job
from .matching import Matching
from .moments import Moments
from .real import Normalization
from .recover_settings import Recover
from .teacher import Teacher

Finished = Callable[[Job], Sequence[tuple[Job, Tensor]]]
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


class Bank:
    """The pools of finished cells, for each teacher; a cell's images go through the teachers once."""

    def __init__(self, teachers: Sequence[Teacher], normalize: Normalization, finished: Finished):
        self.teachers, self.normalize, self.finished = teachers, normalize, finished
        self.pools: dict[tuple[int, int], Pool] = {}

    def prefix(self, which: int, job: Job, *, is_of_block: bool) -> Pool:
        """What the finished cells before `job` have together, all of them or those of its own classes alone.

        Raises ValueError if there are none.
        """
        pools = []
        for cell, images in self.finished(job):
            if is_of_block and cell.first_class != job.first_class:
                continue
            if (which, cell.index) not in self.pools:
                pixels = self.normalize(images.to(self.normalize.gain.device))
                self.pools[which, cell.index] = Pool.of(len(images), self.teachers[which].batch_targets(pixels))
            pools.append(self.pools[which, cell.index])
        if not pools:
            raise ValueError(f"job {job.index} of slot {job.first_slot} has no finished cells before it")
        return merge(pools)


class PrefixMatching:
    """rho sum_k a_k D_k(prefix + cell): the matching of what a cell and the finished prefix have together.

    The own cell counts as much as a slot before it, so that it moves the pool by 1 / rho, rho its slot's number from 1,
    and the result depends on finished slots alone. For the "global" target set the prefix is all cells before, for
    the others those of the cell's own classes. matchings: one a target set. Buffers are static, as theirs.
    """

    def __init__(self, matchings: Sequence[Matching], kinds: Sequence[str], layout: Moments, device: torch.device):
        self.matchings, self.kinds, self.layout, self.device = list(matchings), list(kinds), layout, device
        self.share = torch.zeros((), device=device)
        """Of the prefix in the pool."""
        self.prefixes = [[torch.zeros_like(v) for layer in layout for v in layer] for _ in kinds]

    def load(self, bank: Bank, which: int, job: Job, targets: Sequence[Moments]) -> None:
        """Takes the prefix of a job and its target sets, in place; without a prefix, in slot 0, the cell is alone."""
        slot = job.first_slot
        self.share.fill_(slot / (slot + 1))
        for kind, prefix, matching, wanted in zip(self.kinds, self.prefixes, self.matchings, targets, strict=True):
            matching.set_targets(0, wanted)
            matching.reset()
            if slot and self.layout:
                pool = bank.prefix(which, job, is_of_block=kind != "global").moments(self.layout, self.device)
                for buffer, vector in zip(prefix, (v for layer in pool for v in layer), strict=True):
                    buffer.copy_(vector)

    def __call__(self, moments: Moments, live: Tensor | None = None) -> Tensor:
        """moments: of the cell. A scalar, of which the gradient is that of the cell."""
        share, values = self.share, []
        for prefix, matching in zip(self.prefixes, self.matchings, strict=True):
            before, pooled = iter(prefix), []
            for layer in moments:
                vectors: list[Tensor] = []
                for mean, var in zip(layer[::2], layer[1::2], strict=True):
                    old_mean, old_var = next(before), next(before)
                    spread = share * (1 - share) * (mean - old_mean) ** 2
                    vectors += torch.lerp(mean, old_mean, share), torch.lerp(var, old_var, share) + spread
                pooled.append(tuple(vectors))
            values.append(matching(pooled, live))
        return sum(values[1:], values[0]) / (1 - share)


def prefix_weights(recover: Recover, slot: int) -> Tensor:
    """beta of every iteration, float32 [T]: 0 in slot 0, otherwise up to `nested.weight` in the first `nested.ramp`."""
    nested, t = recover.nested, np.arange(recover.iterations, dtype=np.float64)
    if slot == 0:
        return torch.zeros(recover.iterations)
    rise = np.ones_like(t) if nested.ramp == 0 else np.minimum(1.0, t / (nested.ramp * recover.iterations))
    return torch.from_numpy(nested.weight * rise).float()
