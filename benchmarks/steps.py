"""fastcondense's own step as the benchmarks run it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peers import MOMENTUM, PATCH, Objective
from torch import Tensor, nn
from torch.nn import functional as F

from fastcondense.data.jobs import jobs
from fastcondense.kernels.crop import crop
from fastcondense.networks.graph import Graphs
from fastcondense.networks.precision import arithmetic, network_dtype
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Recover
from fastcondense.recipe.settings import Dataset
from fastcondense.recipe.shared import Precision
from fastcondense.recover.by_statistics import Canvas, RecoverStep
from fastcondense.recover.schedule import Turn
from fastcondense.statistics.matching import Matching, layer_weights
from fastcondense.teachers.moments import Moments
from fastcondense.teachers.teacher import Teacher


def our_step(
    net: nn.Module,
    num_images: int,
    size: int,
    objective: Objective,
    device: torch.device,
    precision: Precision = "fp32",
    num_classes: int = 1000,
    *,
    is_reproducible: bool = True,
) -> OurStep:
    """RecoverStep of a job; EDC's compares with random targets, half of all classes and half of the images' own."""
    is_edc = objective.statistics == "edc"
    recover = Recover(
        iterations=64,
        batch_size=num_images,
        crop_scale=objective.crop_scale,
        roll=(0, 0 if is_edc else size // 7),
        match_weight=objective.match_weight,
        statistics=("bn", "conv", "patch") if is_edc else ("bn",),
        patch_size=PATCH,
        statistics_ema=MOMENTUM if is_edc else 0.0,
        ema_start="zero",
        precision=precision,
        reproducible=is_reproducible,
        tv_weight=objective.tv_weight,
        l2_weight=objective.l2_weight,
    )
    recipe = Recipe(dataset=Dataset(image_size=size, resize=size), recover=recover)
    names = [str(k) for k in range(num_classes)]
    teacher = Teacher.of(
        net, "benchmark", names, range(num_classes), recipe.dataset, recover.statistics, recover.patch_size
    )
    teacher = teacher.to(device).cast(network_dtype(precision))
    if is_edc:
        kept = random_targets(teacher, size, device)
        teacher.targets = {layer.name: vectors for layer, vectors in zip(teacher.layers, kept, strict=True)}
    kind = Unmatched if objective.statistics == "none" else OurStep
    step = kind(recipe, jobs(recipe, num_classes)[0], [teacher], device)
    if is_edc:
        sets = [(0.5, teacher.matched_targets()), (0.5, random_targets(teacher, size, device))]
        weights = layer_weights(len(teacher.layers), device)
        step.matching = [Matching(sets, weights, ema=recover.statistics_ema, ema_start=recover.ema_start)]
    return step


def random_targets(teacher: Teacher, size: int, device: torch.device) -> Moments:
    """Vectors of the shapes of the teacher's moments."""
    image = torch.zeros(1, 3, size, size, device=device, dtype=teacher.dtype or torch.float32)
    with torch.no_grad():
        _, moments = teacher(image.contiguous(memory_format=torch.channels_last))
    return [tuple(torch.rand_like(vector) for vector in layer) for layer in moments]


class OurStep(RecoverStep):
    """Goes on for ever: the iteration counter wraps, so that any number of steps can be timed."""

    def __call__(self, turn: Turn = ((0, 1.0),), canvas: Canvas | None = None, begun_now: Tensor | None = None) -> None:
        with arithmetic(self.recover.precision, self.recover.reproducible):
            super().__call__(turn, canvas, begun_now)
            self.step.remainder_(self.recover.iterations)

    def captured(self) -> Callable[[], None]:
        """The step as users run it: on a GPU a CUDA graph."""
        self.replay = Graphs(self.images.device).capture(self, self.step.zero_)
        return lambda: self.replay()  # holds on to the buffers too, which the graph alone does not


class Unmatched(OurStep):
    """The same kernels, but cross-entropy alone is minimised: what remains is the share of matching."""

    def loss(
        self,
        canvas: Canvas,
        images: Tensor,
        turn: Turn,
        windows_now: Tensor,
        begun_now: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        ((which, _),) = turn
        teacher = self.teachers[which]
        logits, _ = teacher(crop(images, windows_now, canvas.side, dtype=teacher.dtype))
        entropy = F.cross_entropy(logits, self.wanted[which])
        return torch.stack((entropy, entropy, torch.zeros_like(entropy)))
