"""What frozen backbones should see in condensed images: ours of it are directions, image by image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.jobs import Job
from ..networks.precision import network_dtype
from ..recipe.shared import Precision
from ..statistics.class_directions import Directions
from ..teachers.cut import backbone
from ..teachers.teacher import Teacher

Backbone = Callable[[Tensor], Tensor]
"""Normalised images [N, 3, S, S] -> features, float32 [N, D]."""


class Target(Protocol):
    """What a backbone should see in a job's images, on static buffers."""

    def load(self, job: Job) -> None:
        """Takes what it needs of a job of the same shape, in place."""

    def refresh(self, iteration: int) -> None:
        """Takes what an iteration needs, in place, before it."""

    def __call__(self, features: Tensor) -> Tensor:
        """The loss of each image, or one of all of them, [any]. features: float32 [views, classes, slots, D]."""


class ClassDirections:
    """1 - cos(z - mu, d) of each image of a job, with its direction d from the centre mu.

    z: the mean feature of all of its views.
    """

    def __init__(self, directions: Directions, job: Job, device: torch.device):
        self.directions, self.centre = directions, directions.centre.to(device)
        self.wanted = torch.zeros(job.num_classes, job.num_slots, len(self.centre), device=device)

    def load(self, job: Job) -> None:
        self.wanted.copy_(self.directions.of(job.classes(), job.slots()).view(self.wanted.shape))

    def refresh(self, iteration: int) -> None:
        pass  # constant

    def __call__(self, features: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(features.mean(0) - self.centre, self.wanted, -1)


def backbone_of(teacher: Teacher, precision: Precision) -> Backbone:
    """What a teacher has before its classifier, computed in a precision. Raises ValueError as `backbone` does."""
    net = backbone(teacher.cast(network_dtype(precision)))
    return lambda images: net(images.to(net.dtype or images.dtype))
