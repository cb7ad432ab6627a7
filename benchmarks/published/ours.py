"""fastcondense's own step beside each peer's: the same images, network and sizes, and the recipe's objective."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from steps import OurStep, random_targets

from fastcondense.data.jobs import jobs
from fastcondense.networks.precision import network_dtype
from fastcondense.recipe import recipe
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.shared import Precision
from fastcondense.recover.by_gradients import ByGradients
from fastcondense.recover.mosaic import _rank, read_crops, stitch, tile_ranks
from fastcondense.run import Run
from fastcondense.statistics.matching import Matching, layer_weights
from fastcondense.teachers.moments import Moments
from fastcondense.teachers.teacher import Teacher

from .mdc import IPC, NUM_CLASSES
from .peer import CLASSES, Setting
from .rded import mosaics_of
from .real_images import write_arrays, write_class

ITERATIONS = 64  # whose windows are drawn; then they are used again


def recover_step(method: str, setting: Setting, precision: Precision = "fp32", **changes: Any) -> OurStep:
    """An iteration of METHOD/imagenet1k-ipc10's recover with one teacher; `captured` is how users run it.

    What is matched, other than BatchNorms' running statistics, is as in the peers' adapters: means of 0 and variances
    of 1. changes: other settings of recover. Raises ValueError if the images are not those of a whole job: with ipc
    images of a class, a multiple of ipc.
    """
    found = recipe.load(f"{method}/imagenet1k-ipc10")
    size, device = setting.size, setting.device
    recover = replace(
        found.recover,
        iterations=ITERATIONS,
        batch_size=setting.count,
        roll=(0, setting.jitter if found.recover.roll[1] else 0),
        precision=precision,
        targets=("global",),
        target_weights=(1.0,),
        initial=replace(found.recover.initial, kind="noise"),
    )
    recover = replace(recover, **changes)
    changed = replace(found, ipc=setting.ipc, recover=recover, dataset=replace(found.dataset, image_size=size))
    teacher = teacher_of(setting, changed).cast(network_dtype(precision))
    job = jobs(changed, CLASSES)[0]
    if job.num_images != setting.count:
        raise ValueError(
            f"{method} takes {job.num_images} of {setting.count} images at ipc {setting.ipc}: take as many"
        )
    constants: Moments = [
        tuple(torch.full_like(vector, float(number % 2)) for number, vector in enumerate(layer))
        for layer in random_targets(teacher, size, device)
    ]
    named = {layer.name: vectors for layer, vectors in zip(teacher.layers, constants, strict=True)}
    teacher.targets = named | teacher.targets
    given = setting.images.to(device)
    step = OurStep(changed, job, [teacher], device, lambda _: given)
    if "category" in found.recover.targets:  # a class's targets: in the step, the mean of the batch's
        weights = layer_weights(len(teacher.layers), device)
        sets = list(zip(found.recover.target_weights, (teacher.matched_targets(), constants), strict=True))
        step.matching = [Matching(sets, weights, ema=recover.statistics_ema, ema_start=recover.ema_start)]
    return step


def teacher_of(setting: Setting, found: Recipe) -> Teacher:
    """The setting's network as the teacher of a recipe, on the device."""
    recover, names = found.recover, [str(label) for label in range(CLASSES)]
    net = copy.deepcopy(setting.net)
    teacher = Teacher.of(net, "benchmark", names, range(CLASSES), found.dataset, recover.statistics, recover.patch_size)
    return teacher.to(setting.device)


def mosaic_step(setting: Setting) -> Callable[[], Any]:
    """RDED's scores and mosaics of one class, from image files to normalised mosaics."""
    found = recipe.load("rded/imagenet1k-ipc10")
    dataset = replace(found.dataset, image_size=setting.size, resize=setting.size)
    initial = replace(found.recover.initial, candidates=0)
    changed = replace(found, ipc=mosaics_of(setting), dataset=dataset, recover=replace(found.recover, initial=initial))
    run = Run(changed, setting.scratch / "mosaics", write_class(setting), setting.device)
    teacher = teacher_of(setting, changed)

    def step() -> torch.Tensor:
        ranked = _rank(run, [teacher], 0)
        ranks = torch.cat([tile_ranks(initial, changed.ipc, slot) for slot in range(changed.ipc)])
        crops = read_crops(run, ranked.ids[ranks], ranked.crops[ranks]).unflatten(0, (changed.ipc, -1))
        return stitch(crops, setting.size, initial.resize)

    return step


def gradient_step(setting: Setting) -> Callable[[], Any]:
    """A class's step of mdc/cifar10-ipc10 with a subset of one image a class beside the whole set."""
    found = recipe.load(f"mdc/cifar10-ipc{IPC}")
    gradients = replace(found.recover.gradients, net_images=64)
    changed = replace(found, recover=replace(found.recover, gradients=gradients))
    data = write_arrays(setting, NUM_CLASSES)
    run = Run(changed, setting.scratch / "gradients", data, setting.device)
    mine = ByGradients(run)
    mine.begin(jobs(changed, NUM_CLASSES)[0])
    assert mine.subset is not None
    mine.subset.size = 1
    turns = iter(np.resize(np.arange(NUM_CLASSES), 10**6).tolist())
    return lambda: mine._step(next(turns), 0, False)
