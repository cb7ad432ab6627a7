"""Stand-ins for what a run has later: untrained teachers with made-up targets. They cost what the real ones do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.jobs import Job
from ..networks import zoo
from ..networks.precision import network_dtype
from ..recipe.recipe import Recipe
from ..recover.by_statistics import RecoverStep, check_layers
from ..rng import Stream
from ..teachers.teacher import Teacher


def teacher(recipe: Recipe, architecture: str, num_classes: int, device: torch.device) -> Teacher:
    """An untrained teacher that keeps the recipe's statistics; each of their targets is a vector of ones."""
    recover, size = recipe.recover, recipe.dataset.image_size
    with Stream(recipe.seed, f"plan/{architecture}").torch_generator():
        net = zoo.build(architecture, num_classes)
    names = [str(label) for label in range(num_classes)]
    statistics = recover.statistics, recover.patch_size
    labelled = recipe.labels.teachers or recipe.squeeze.teachers
    has_unfused = recipe.labels.is_in_training and architecture in labelled
    made = Teacher.of(net, architecture, names, range(num_classes), recipe.dataset, *statistics, has_unfused)
    made = made.to(device)
    black = torch.zeros(1, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    for layer, vectors in zip(made.layers, made.batch_targets(black), strict=True):
        made.targets.setdefault(layer.name, tuple(torch.ones_like(vector) for vector in vectors))
        made.group_targets[layer.name] = tuple(torch.ones(len(v)).expand(recipe.ipc, -1) for v in vectors)
        made.class_targets[layer.name] = tuple(torch.ones(len(v)).expand(num_classes, -1) for v in vectors)
    return made


def matched(recipe: Recipe) -> tuple[str, ...]:
    """Architectures of the teachers that recover asks."""
    return recipe.recover.teachers or recipe.squeeze.teachers


def images(recipe: Recipe, count: int, device: torch.device) -> Tensor:
    """Normal numbers in the place of normalised images, float32 [count, 3, S, S], channels_last."""
    size = recipe.dataset.image_size
    rows = [(0, number) for number in range(count)]
    made = Stream(recipe.seed, "plan/images").normal(rows, 3 * size**2, device).view(count, 3, size, size)
    return made.contiguous(memory_format=torch.channels_last)


def smaller(job: Job, num_images: int, num_classes: int) -> Job:
    """A job of so many images in the place of `job`: of other classes if it has one slot, of other slots if not."""
    if job.num_slots == 1 and num_images <= num_classes:
        return Job(0, 0, 1, 0, num_images)
    slots = min(job.num_slots, num_images) if num_images % min(job.num_slots, num_images) == 0 else num_images
    classes = num_images // slots
    return Job(0, 0, slots, 0, classes) if classes <= num_classes else Job(0, 0, num_images, 0, 1)


def recover_step(recipe: Recipe, job: Job, teachers: Sequence[Teacher], device: torch.device) -> RecoverStep:
    """A job's step of recover.objective statistics with the teachers that recover asks, on noise."""
    teachers = [one.cast(network_dtype(recipe.recover.precision)) for one in teachers]
    check_layers(recipe, teachers)
    return RecoverStep(recipe, job, teachers, device)
