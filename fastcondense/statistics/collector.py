"""Moments of a teacher's layers over many real images, all together and class by class, in one pass over them.

Shares of the images may be collected by several workers and brought together at the end.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from ..teachers.teacher import Teacher


class Members:
    """Which entries of a batch belong to which group: groups int64 [n], every entry with the weight of num_images."""

    def __init__(self, groups: Tensor, num_images: int):
        self.rows, self.row_of = groups.unique(return_inverse=True)  # int64 [r]: the groups that occur; [n]
        self.weights = num_images * F.one_hot(self.row_of, len(self.rows)).double().T  # [r, n]
        self.counts = self.weights.sum(1)


class Pool:
    """Mean and variance of what was added, group by group: float64 [groups, length].

    With shares of the images as weights, the variance is the mean of the variances plus, if has_between, the variance
    of the means (Chan, Golub and LeVeque, 1983). The sums are products with a matrix of members, not atomic additions:
    the same batches give the same bits.
    """

    def __init__(self, num_groups: int, length: int, device: torch.device, *, has_between: bool):
        self.has_between = has_between
        self.counts = torch.zeros(num_groups, dtype=torch.float64, device=device)
        self.means = torch.zeros(num_groups, length, dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.means)
        """Sums over images of squared deviations from the mean, a pixel."""

    def add(self, members: Members, means: Tensor, variances: Tensor) -> None:
        """means, variances: [n, length], of the entries of `members`."""
        rows, counts = members.rows, members.counts[:, None]
        mean = members.weights @ means.double() / counts
        squares = variances.double()
        if self.has_between:
            squares = squares + (means - mean[members.row_of]).square()
        before = self.counts[rows, None]
        self.counts[rows] += members.counts
        share, shift = counts / (before + counts), mean - self.means[rows]
        self.means[rows] += shift * share
        self.squares[rows] += members.weights @ squares
        if self.has_between:
            self.squares[rows] += shift.square() * before * share

    def all_reduce(self) -> None:
        """Brings together what the workers of torch.distributed's default group have added, on all of them."""
        counts = self.counts.clone()
        distributed.all_reduce(counts)
        means = self.means * (self.counts / counts.clamp(min=1))[:, None]
        distributed.all_reduce(means)
        if self.has_between:
            self.squares += (self.means - means).square() * self.counts[:, None]
        distributed.all_reduce(self.squares)
        self.counts, self.means = counts, means

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Means and biased variances, float32 [groups, length], on the host."""
        return self.means.float().cpu(), (self.squares / self.counts[:, None]).float().cpu()


class Collector:
    """Moments of the layers `names` of a teacher over all images that are added, and of all its layers class by class
    if there are num_classes, whatever the batches' sizes.

    class_variance "within-image" is the mean over a class's images of each image's own variance, as published; "full"
    is that of all pixels of the class. The same holds for patches.
    """

    def __init__(
        self,
        teacher: Teacher,
        names: Collection[str],
        num_classes: int = 0,
        class_variance: Literal["within-image", "full"] = "within-image",
    ):
        self.teacher, self.names = teacher, names
        self.num_classes, self.has_between = num_classes, class_variance == "full"
        self.pools: dict[str, list[Pool]] = {}
        self.class_pools: dict[str, list[Pool]] = {}

    def add(self, images: Tensor, labels: Tensor) -> None:
        """images: normalised [N, 3, S, S] on the teacher's device; labels: their classes, int64 [N]."""
        if self.num_classes:
            moments, all_of_them = self.teacher.image_moments(images), Members(torch.zeros_like(labels), 1)
            classes = Members(labels, 1)
        else:
            moments = [tuple(vector[None] for vector in layer) for layer in self.teacher.batch_targets(images)]
            all_of_them = Members(torch.zeros_like(labels[:1]), len(images))
        for layer, vectors in zip(self.teacher.layers, moments, strict=True):
            if layer.name in self.names:
                _add(self.pools, layer.name, all_of_them, vectors, 1, has_between=True)
            if self.num_classes:
                _add(self.class_pools, layer.name, classes, vectors, self.num_classes, has_between=self.has_between)

    def all_reduce(self) -> None:
        """Brings together the shares of torch.distributed's workers, each of which has added images."""
        for pools in (*self.pools.values(), *self.class_pools.values()):
            for pool in pools:
                pool.all_reduce()

    def targets(self) -> dict[str, tuple[Tensor, ...]]:
        """Mean and biased variance of the channels, of the patches, or both in a row, float32, by the layer's name."""
        return {
            name: tuple(vector[0] for pool in pools for vector in pool.vectors()) for name, pools in self.pools.items()
        }

    def class_targets(self) -> dict[str, tuple[Tensor, ...]]:
        """The same with a row a class: float32 [classes, length]. Raises ValueError if a class has no image."""
        for pools in self.class_pools.values():
            if bool((pools[0].counts == 0).any()):
                raise ValueError(
                    f"statistics a class need an image of each class that can be read; class number "
                    f"{int(pools[0].counts.argmin())} has none"
                )
        return {
            name: tuple(vector for pool in pools for vector in pool.vectors())
            for name, pools in self.class_pools.items()
        }


def _add(
    pools: dict[str, list[Pool]],
    name: str,
    members: Members,
    vectors: Sequence[Tensor],
    num_groups: int,
    *,
    has_between: bool,
) -> None:
    if name not in pools:
        pools[name] = [Pool(num_groups, m.shape[1], m.device, has_between=has_between) for m in vectors[::2]]
    for pool, means, variances in zip(pools[name], vectors[::2], vectors[1::2], strict=True):
        pool.add(members, means, variances)
