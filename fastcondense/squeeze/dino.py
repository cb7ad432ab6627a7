"""Self-distillation with no labels: DINO (Caron et al., ICCV'21)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..networks.encoders import encode, feature_size, follow, momentum_copy
from ..recipe.settings import DINO
from .multi_crop import Crops, unpack


def distill(
    student: Tensor, teacher: Tensor, center: Tensor, student_temperature: float, teacher_temperature: Tensor
) -> Tensor:
    """Mean cross-entropy between the teacher's answer to a view and the student's to every other view.

    student: [B, S, D]; teacher: [B, T, D], its views are the student's first T; center: [D]. Returns [B]; no gradient
    flows to the teacher. Answers are softmax(student / ts) and softmax((teacher - center) / tt). Algorithm 1 of DINO.
    """
    wanted = ((teacher.detach() - center) / teacher_temperature).softmax(2)
    entropies = -torch.einsum("btd,bsd->bts", wanted, (student / student_temperature).log_softmax(2))
    num_teacher, num_student = entropies.shape[1:]
    differ = 1 - torch.eye(num_teacher, num_student, device=student.device, dtype=student.dtype)
    return (entropies * differ).sum((1, 2)) / (num_teacher * num_student - min(num_teacher, num_student))


class Head(nn.Module):
    """Three linear layers with GELU (and BatchNorm), length one, and a last layer whose rows have length one."""

    is_frozen: Tensor

    def __init__(self, features: int, settings: DINO):
        super().__init__()
        widths = (features, settings.hidden, settings.hidden, settings.bottleneck)
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        norm = nn.BatchNorm1d if settings.head_batch_norm else nn.Identity
        hidden = [module for layer in layers[:2] for module in (layer, norm(settings.hidden), nn.GELU())]
        self.layers = nn.Sequential(*hidden, layers[2])
        self.last = nn.Parameter(nn.init.trunc_normal_(torch.empty(settings.outputs, settings.bottleneck), std=0.02))
        self.register_buffer("is_frozen", torch.zeros((), dtype=torch.bool), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        last = torch.where(self.is_frozen, self.last.detach(), self.last)
        return F.normalize(self.layers(features)) @ F.normalize(last).T


class SelfDistillation(nn.Module):
    """A student in training, its momentum copy as teacher, and the running mean of the teacher's answers.

    forward(rows of `multi_crop`, of two large views and some small ones) -> losses float32 [B]. A forward in training
    mode is a step: the teacher follows the student, and the center the teacher's answers.
    """

    center: Tensor
    step: Tensor

    def __init__(
        self,
        net: nn.Module,
        classifier: str,
        settings: DINO,
        crops: list[Crops],
        epochs: int,
        steps_per_epoch: int,
        parts: int = 1,
    ):
        """Takes `net` over: a `Head` replaces its classifier. Draws from torch's generator."""
        super().__init__()
        net.set_submodule(classifier, Head(feature_size(net, classifier), settings))
        self.student, self.teacher, self.classifier = net, momentum_copy(net), classifier
        self.settings, self.crops, self.parts = settings, crops, parts
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.register_buffer("center", torch.zeros(settings.outputs))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def trained(self) -> nn.Module:
        """The network that is kept."""
        return self.teacher if self.settings.network == "teacher" else self.student

    def decay(self, step: Tensor) -> Tensor:
        """Of the teacher after step number `step`: from settings.decay to 1, float32 []."""
        progress = step.clamp(min=0) / (self.epochs * self.steps_per_epoch)
        return 1 - (1 - self.settings.decay) * 0.5 * (1 + torch.cos(math.pi * progress))

    def teacher_temperature(self, step: Tensor) -> Tensor:
        """In the epoch of `step`, float32 []."""
        first, last, epochs = (
            self.settings.first_teacher_temperature,
            self.settings.teacher_temperature,
            self.settings.temperature_epochs,
        )
        epoch = step // self.steps_per_epoch
        return first + (last - first) * (epoch / max(1, epochs - 1)).clamp(max=1) if epochs else step * 0.0 + last

    def forward(self, rows: Tensor) -> Tensor:
        views = unpack(rows, self.crops)
        head = self.student.get_submodule(self.classifier)
        assert isinstance(head, Head)
        head.is_frozen.copy_(self.step < self.settings.frozen_epochs * self.steps_per_epoch)
        answers = [self._answers(self.student, group) for group in views]
        with torch.no_grad():
            if self.training:  # before the teacher is used: the update that ends the step before
                follow(self.teacher, self.student, self.decay(self.step - 1))
            wanted = self._answers(self.teacher, views[0])
        with torch.autocast(rows.device.type, enabled=False):
            losses = distill(
                torch.cat(answers, 1),
                wanted,
                self.center,
                self.settings.student_temperature,
                self.teacher_temperature(self.step),
            )
        if self.training:
            self.center.lerp_(wanted.mean((0, 1)), 1 - self.settings.center_decay)
            self.step += 1
        return losses

    def _answers(self, net: nn.Module, views: Tensor) -> Tensor:
        # views: [B, V, 3, S, S] -> [B, V, outputs]
        return encode(net, views.flatten(0, 1), self.parts).unflatten(0, views.shape[:2])
