"""Where condensed images for frozen backbones point: from features of views of the real images, class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..devices import stopwatch
from ..files import tree_sha256
from ..networks.precision import arithmetic
from ..networks.zoo import black
from ..run import Run
from ..teachers.cut import backbone
from ..teachers.kept import teacher_path
from ..teachers.teacher import Teacher
from .class_parts import part_means
from .collection import Collection
from .collector import Collector, Members, Pool
from .targets import keep, read_targets

_FEATURES, _COVARIANCE = "features", "covariance"
_RIDGE = 1.0
"""What ridge regression adds to variances, in units of their mean; with 0.3 a point was lost on held-out images."""


class FeatureCollector(Collector):
    """Mean features, class by class, of all views that are added, and if asked for the covariance of all of them.

    The classes are those from first_class on.
    """

    def __init__(self, teacher: Teacher, num_classes: int, *, has_covariance: bool, first_class: int = 0):
        super().__init__(teacher, (_COVARIANCE,) * has_covariance, num_classes, "full", first_class)
        self.backbone = backbone(teacher)
        self.sums: dict[str, Tensor] = {}
        """float64: how many views [1], the sum of their features [D], and that of their products [D, D]."""

    def like(self, first_class: int = 0, num_classes: int = 0) -> FeatureCollector:
        """An empty one of some classes."""
        return FeatureCollector(self.teacher, num_classes, has_covariance=bool(self.names), first_class=first_class)

    def lengths(self, image_size: int) -> dict[str, list[int]]:
        length = self.class_lengths(image_size)[_FEATURES][0]
        return {_COVARIANCE: [length**2]}

    def class_lengths(self, image_size: int) -> dict[str, list[int]]:
        with torch.no_grad():
            return {_FEATURES: 2 * [self.backbone(black(image_size, self.teacher.outputs.device)).shape[1]]}

    def add(self, images: Tensor, labels: Tensor) -> None:
        """images: normalised [N, 3, S, S] on the teacher's device; labels: their classes, int64 [N]."""
        with torch.no_grad():
            features = self.backbone(images)
        if not self.class_pools:
            pool = Pool(self.num_classes, features.shape[1], features.device, has_between=True)
            self.class_pools[_FEATURES] = [pool]
        members = Members(labels - self.first_class, 1)
        self.class_pools[_FEATURES][0].add(members, features, torch.zeros_like(features))
        if self.names:
            wide = features.double()
            self.merge({"count": wide.new_tensor([len(wide)]), "sum": wide.sum(0), "products": wide.T @ wide})

    def state(self) -> dict[str, Tensor]:
        return self.sums

    def merge(self, state: Mapping[str, Tensor]) -> None:
        self.sums = {name: value + self.sums[name] if self.sums else value for name, value in state.items()}

    def targets(self) -> dict[str, tuple[Tensor, ...]]:
        """The covariance [D * D] of all views, float32 on the host, if it is collected."""
        if not self.names:
            return {}
        mean = self.sums["sum"] / self.sums["count"]
        covariance = self.sums["products"] / self.sums["count"] - mean[:, None] * mean
        return {_COVARIANCE: (covariance.flatten().float().cpu(),)}


@dataclass(frozen=True)
class Directions:
    """Where the features of condensed images should lie, seen from a centre: float32 [D] and [classes, slots, D]."""

    centre: Tensor
    of_slots: Tensor

    @staticmethod
    def between(means: Tensor) -> Directions:
        """From the mean of all classes to the mean of each, float32 [classes, D], for one image a class."""
        centre = means.mean(0)
        return Directions(centre, (means - centre)[:, None])

    def of(self, classes: Tensor, slots: Tensor) -> Tensor:
        """Those of some images, [n, D]; classes, slots: int64 [n]. Of one direction a class, that of its every slot."""
        return self.of_slots[classes, slots if self.of_slots.shape[1] > 1 else 0 * slots]

    def to(self, device: torch.device) -> Directions:
        return Directions(self.centre.to(device), self.of_slots.to(device))


def class_directions(run: Run, teachers: Sequence[Teacher]) -> list[Directions]:
    """Of each teacher before its classifier, on the host: the directions of recover.means.target, slot by slot.

    class: mu_k - mu, with mu_k the mean feature of a class, and mu that of all classes; of several images a class,
    m - m_0, with m the mean of the views in a part of the class, and m_0 that of all classes (class_parts.py).
    ridge: (S + s I)^-1 times it, the weights that ridge regression gives a linear layer for the class, with S the
    covariance of the features of all views and s the mean of its diagonal. Of gradient, which has none, those of class.

    They are of recover.means.real_views views of every training image, of recover's crops and flips: read from the
    run's folder, or collected in one read for all teachers, and kept. All workers of a launch call this, and share the
    images. Raises ValueError as `backbone` does, and if a class has no image that can be read.
    """
    recover = run.recipe.recover
    has_covariance = recover.means.target == "ridge"
    wanted = {}
    for teacher in teachers:
        about = {"teacher": teacher.sha256, "views": asdict(recover.alone()), "count": recover.means.real_views}
        identity = run.identity("squeeze") | about | ({"covariance": True} if has_covariance else {})
        name = f"targets-{tree_sha256(identity)[:8]}.safetensors"
        path = teacher_path(run.out, teacher.name).with_name(name)
        wanted[path] = FeatureCollector(teacher, len(run.real.classes), has_covariance=has_covariance)
    missing = {path: collector for path, collector in wanted.items() if not path.exists()}
    if missing:
        collection = Collection(run, missing, recover, recover.means.real_views, "recover/means")
        with stopwatch(run.device) as watch, arithmetic("fp32"):
            collection.collect()
            keep(collection, collection.joined)
        run.log.event("targets", teachers=len(missing), seconds=watch.seconds)
    read = [read_targets(path, of, run.recipe.dataset.image_size) for path, of in wanted.items()]
    found = [Directions.between(tables[_FEATURES][0]) for _, tables in read]
    if run.recipe.ipc > 1 and recover.means.target != "gradient":
        parts = part_means(run, teachers, [len(of.centre) for of in found])
        found = [Directions(of.centre, means) for of, means in zip(found, parts, strict=True)]
    if has_covariance:
        covariances = [vectors[_COVARIANCE][0] for vectors, _ in read]
        weights = [ridge_weights(of.of_slots, one) for of, one in zip(found, covariances, strict=True)]
        found = [Directions(of.centre, to) for of, to in zip(found, weights, strict=True)]
    return found


def ridge_weights(centred: Tensor, covariance: Tensor) -> Tensor:
    """(S + s I)^-1 d of each vector d, float32 [..., D]; S: float32 [D * D] or [D, D], s: the mean of its diagonal."""
    length = centred.shape[-1]
    wide = covariance.double().view(length, length)
    ridged = wide + _RIDGE * wide.diagonal().mean() * torch.eye(length, dtype=wide.dtype)
    return torch.linalg.solve(ridged, centred.double().view(-1, length).T).T.float().view(centred.shape)
