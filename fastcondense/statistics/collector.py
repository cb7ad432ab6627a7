"""Moments of a teacher's layers over many real images, all together and class by class, in one pass over them.

Parts of the images may be collected apart and brought together at the end.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..teachers.teacher import Teacher

_STATE = ("counts", "means", "squares")  # of a Pool


class Members:
    """The group of each entry of a batch: groups int64 [n]; every entry has the weight of num_images."""

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
        mean = members.weights @ means.double() / members.counts[:, None]
        squares = variances.double()
        if self.has_between:
            squares = squares + (means - mean[members.row_of]).square()
        self._merge(members.rows, members.counts, mean, members.weights @ squares)

    @staticmethod
    def of(counts: Tensor, means: Tensor, squares: Tensor) -> Pool:
        """A pool of all images, as another has left it."""
        num_groups, length = means.shape
        pool = Pool(num_groups, length, means.device, has_between=True)
        pool.counts, pool.means, pool.squares = counts, means, squares
        return pool

    def merge(self, other: Pool) -> None:
        """Adds what another pool of the same groups has."""
        self._merge(torch.arange(len(self.counts), device=self.counts.device), other.counts, other.means, other.squares)

    def _merge(self, rows: Tensor, counts: Tensor, means: Tensor, squares: Tensor) -> None:
        before = self.counts[rows]
        total = before + counts
        share, shift = (counts / total.clamp(min=1))[:, None], means - self.means[rows]
        self.counts[rows] = total
        self.means[rows] += shift * share
        self.squares[rows] += squares
        if self.has_between:
            self.squares[rows] += shift.square() * before[:, None] * share

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Means and biased variances, float32 [groups, length], on the host."""
        return self.means.float().cpu(), (self.squares / self.counts[:, None]).float().cpu()


class Collector:
    """Moments of the layers `names` of a teacher over all images that are added, and of all its layers class by class
    if there are num_classes, whatever the batches' sizes.

    class_variance "within-image" is the mean over a class's images of each image's own variance, as published; "full"
    is that of all pixels of the class. The same holds for patches. The classes are those from first_class on.
    """

    def __init__(
        self,
        teacher: Teacher,
        names: Collection[str],
        num_classes: int = 0,
        class_variance: Literal["within-image", "full"] = "within-image",
        first_class: int = 0,
    ):
        self.teacher, self.names = teacher, names
        self.num_classes, self.class_variance, self.first_class = num_classes, class_variance, first_class
        self.pools: dict[str, list[Pool]] = {}
        self.class_pools: dict[str, list[Pool]] = {}

    def like(self, first_class: int = 0, num_classes: int = 0) -> Collector:
        """An empty one of the same layers, and of some classes."""
        return Collector(self.teacher, self.names, num_classes, self.class_variance, first_class)

    def lengths(self, image_size: int) -> dict[str, list[int]]:
        """Lengths of the vectors of what it collects, by the name."""
        return self.teacher.lengths(image_size)

    def class_lengths(self, image_size: int) -> dict[str, list[int]]:
        """The same of what it collects class by class."""
        return self.lengths(image_size) if self.num_classes else {}

    def add(self, images: Tensor, labels: Tensor) -> None:
        """images: normalised [N, 3, S, S] on the teacher's device; labels: their classes, int64 [N]."""
        if self.num_classes:
            moments, all_of_them = self.teacher.image_moments(images), Members(torch.zeros_like(labels), 1)
            classes = Members(labels - self.first_class, 1)
        else:
            moments = [tuple(vector[None] for vector in layer) for layer in self.teacher.batch_targets(images)]
            all_of_them = Members(torch.zeros_like(labels[:1]), len(images))
        for layer, vectors in zip(self.teacher.layers, moments, strict=True):
            if layer.name in self.names:
                _add(self.pools, layer.name, all_of_them, vectors, 1, has_between=True)
            if self.num_classes:
                has_between = self.class_variance == "full"
                _add(self.class_pools, layer.name, classes, vectors, self.num_classes, has_between=has_between)

    def state(self) -> dict[str, Tensor]:
        """What the pools of all images hold, float64, for `merge`."""
        return {
            f"{name}/{k}/{key}": getattr(pool, key)
            for name, pools in self.pools.items()
            for k, pool in enumerate(pools)
            for key in _STATE
        }

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Adds the images that the `state` of another collector of the same layers stands for."""
        for name in self.names:
            parts = sum(key.startswith(f"{name}/") for key in state) // len(_STATE)
            others = [Pool.of(*(state[f"{name}/{k}/{key}"] for key in _STATE)) for k in range(parts)]
            if name in self.pools:
                for pool, other in zip(self.pools[name], others, strict=True):
                    pool.merge(other)
            elif others:
                self.pools[name] = others

    def targets(self) -> dict[str, tuple[Tensor, ...]]:
        """Mean and biased variance of the channels, of the patches, or both in a row, float32, by the layer's name."""
        return {
            name: tuple(vector[0] for pool in pools for vector in pool.vectors()) for name, pools in self.pools.items()
        }

    def class_targets(self) -> dict[str, tuple[Tensor, ...]]:
        """The `targets` with a row a class: float32 [classes, length]. Raises ValueError if a class has no image."""
        counts = [pools[0].counts for pools in self.class_pools.values()] or [torch.zeros(self.num_classes)]
        for number in [int(count.argmin()) for count in counts if bool((count == 0).any())]:
            raise ValueError(
                "statistics a class need an image of each class that can be read; class number "
                f"{self.first_class + number} has none"
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
