"""fastcondense's own step as the benchmarks run it."""

from __future__ import annotations

import torch
from peers import Objective
from torch import Tensor, nn
from torch.nn import functional as F

from fastcondense.kernels.crop import crop
from fastcondense.recipe import Dataset, Recipe, Recover
from fastcondense.recover import RecoverStep, jobs
from fastcondense.teacher import Teacher


class Unavailable(Exception):
    """A variant that cannot run here, and why."""


def our_step(
    net: nn.Module,
    num_images: int,
    size: int,
    objective: Objective,
    device: torch.device,
    precision: str = "fp32",
    num_classes: int = 1000,
) -> OurStep:
    """RecoverStep of a job. Raises Unavailable for an objective or a precision that fastcondense has not."""
    if objective.statistics == "edc":
        raise Unavailable("fastcondense has no convolution statistics yet")
    if precision != "fp32":
        raise Unavailable(f"fastcondense has no precision {precision} yet")
    recover = Recover(
        iterations=64,
        batch_size=num_images,
        roll=(0, size // 7),
        match_weight=objective.match_weight,
        tv_weight=objective.tv_weight,
        l2_weight=objective.l2_weight,
    )
    recipe = Recipe(dataset=Dataset(image_size=size, resize=size), recover=recover)
    teacher = Teacher.of(net, "benchmark", [str(k) for k in range(num_classes)], range(num_classes), recipe.dataset)
    kind = Unmatched if objective.statistics == "none" else OurStep
    return kind(recipe, jobs(recipe, num_classes)[0], [teacher.to(device)], device)


class OurStep(RecoverStep):
    """Goes on for ever: the iteration counter wraps, so that any number of steps can be timed."""

    def __call__(self, which: int = 0) -> None:
        super().__call__(which)
        self.step.remainder_(self.recover.iterations)


class Unmatched(OurStep):
    """The same kernels, but cross-entropy alone is minimised: what remains is the share of matching."""

    def loss(self, images: Tensor, which: int, windows_now: Tensor) -> Tensor:
        logits, _ = self.teachers[which](crop(images, windows_now, self.size))
        entropy = F.cross_entropy(logits, self.wanted[which])
        return torch.stack((entropy, entropy, torch.zeros_like(entropy)))
