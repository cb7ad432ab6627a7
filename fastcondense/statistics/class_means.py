"""Mean features of each class over views of its real images: where condensed images for frozen backbones point."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..devices import stopwatch
from ..files import tree_sha256
from ..networks.precision import arithmetic
from ..run import Run
from ..teachers.cut import backbone
from ..teachers.kept import teacher_path
from ..teachers.teacher import Teacher, black
from .collection import Collection
from .collector import Collector, Members, Pool
from .targets import keep, read_targets

_FEATURES = "features"


class FeatureCollector(Collector):
    """Mean features, class by class, of all views that are added. The classes are those from first_class on."""

    def __init__(self, teacher: Teacher, num_classes: int, first_class: int = 0):
        super().__init__(teacher, (), num_classes, "full", first_class)
        self.backbone = backbone(teacher)

    def like(self, first_class: int = 0, num_classes: int = 0) -> FeatureCollector:
        """An empty one of some classes."""
        return FeatureCollector(self.teacher, num_classes, first_class)

    def lengths(self, image_size: int) -> dict[str, list[int]]:
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


def class_means(run: Run, teachers: Sequence[Teacher]) -> list[Tensor]:
    """Mean features of each class before each teacher's classifier, float32 [classes, D] on the host.

    They are taken over recover.means.real_views views of every training image, of recover's crops and flips: read from
    the run's folder, or collected in one read for all teachers, and kept. All workers of a launch call this, and share
    the images. Raises ValueError as `backbone` does, and if a class has no image that can be read.
    """
    recover = run.recipe.recover
    views = {name: getattr(recover, name) for name in ("crop_scale", "crop_ratio", "padding", "flip", "roll")}
    wanted = {}
    for teacher in teachers:
        identity = run.identity("squeeze") | {
            "teacher": teacher.sha256,
            "views": views,
            "count": recover.means.real_views,
        }
        name = f"targets-{tree_sha256(identity)[:8]}.safetensors"
        path = teacher_path(run.out, teacher.name).with_name(name)
        wanted[path] = FeatureCollector(teacher, len(run.real.classes))
    missing = {path: collector for path, collector in wanted.items() if not path.exists()}
    if missing:
        collection = Collection(run, missing, recover, recover.means.real_views, "recover/means")
        with stopwatch(run.device) as watch, arithmetic("fp32"):
            collection.collect()
            keep(collection, collection.joined)
        run.log.event("targets", teachers=len(missing), seconds=watch.seconds)
    size = run.recipe.dataset.image_size
    return [read_targets(path, collector, size)[1][_FEATURES][0] for path, collector in wanted.items()]
