"""What frozen backbones should see in condensed images; ours of it: the directions of the real images' class means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.jobs import Job
from ..networks.precision import network_dtype
from ..recipe.shared import Precision
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
        """The loss of each class, or one of all of them, [any]. features: float32 [views, classes, slots, D]."""


class ClassDirections:
    """1 - cos(z_k - mu, mu_k - mu) of each class k of a job; z_k: the mean feature of all views of its images.

    means: of real views, mu_k, float32 [classes, D]; mu is their mean.
    """

    def __init__(self, means: Tensor, job: Job, device: torch.device):
        self.means, self.centre = means, means.mean(0).to(device)
        self.wanted = torch.zeros(job.num_classes, means.shape[1], device=device)

    def load(self, job: Job) -> None:
        rows = self.means[job.first_class : job.first_class + job.num_classes]
        self.wanted.copy_(rows.to(self.wanted.device) - self.centre)

    def refresh(self, iteration: int) -> None:
        pass  # constant

    def __call__(self, features: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(features.mean((0, 2)) - self.centre, self.wanted, 1)


def backbone_of(teacher: Teacher, precision: Precision) -> Backbone:
    """What a teacher has before its classifier, computed in a precision. Raises ValueError as `backbone` does."""
    net = backbone(teacher.cast(network_dtype(precision)))
    return lambda images: net(images.to(net.dtype or images.dtype))
