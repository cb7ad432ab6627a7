"""The steps that a plan measures: recover's, a student's, a teacher's training, and a forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.jobs import Job
from ..data.real import Normalization
from ..labels.labels import LabelSource, TeacherLabels, hard_labels, student_loss
from ..labels.views import ReplayedViews
from ..networks import zoo
from ..networks.fit import make_optimizer
from ..networks.graph import Graphs
from ..networks.precision import arithmetic, network_dtype
from ..networks.train_step import Batch, CapturedStep, TrainStep, as_it_is
from ..recipe.recipe import Recipe
from ..recipe.settings import Optimization
from ..recipe.shared import Precision
from ..recover.by_features import FeatureStep
from ..recover.by_gradients import ByGradients
from ..recover.by_means import MeansStep
from ..recover.feature_targets import ClassDirections, backbone_of
from ..recover.matched_networks import RealImages
from ..recover.schedule import stages, turns
from ..rng import Stream
from ..run import Run
from ..statistics.class_directions import Directions
from ..students.task import why_not_captured
from ..teachers.cut import Cut
from ..teachers.teacher import Teacher
from . import stand_ins

Step = Callable[[], object]
Settings = TypeVar("Settings", bound=Optimization)
Item = TypeVar("Item")


def recover_step(recipe: Recipe, job: Job, teachers: Sequence[Teacher], device: torch.device) -> Step:
    """Iterations of a job of objective statistics, features or means: one for each turn and each stage.

    The mean is an iteration's; `parts_of_recover_step` says how many there are.
    """
    graphs, advances, counter = Graphs(device), list[Callable[[], None]](), torch.zeros(0)
    with arithmetic(recipe.recover.precision):
        if recipe.recover.objective == "features":
            observer = teachers[0].cast(network_dtype(recipe.recover.precision))
            step = FeatureStep(recipe, job, Cut(observer, recipe.recover.features.layer), device)
            step.load(job, lambda job: _plain(recipe, job.num_images, device), lambda _: torch.zeros_like(step.anchors))
            counter = step.step
            advances.append(graphs.capture(step, counter.zero_))
        elif recipe.recover.objective == "means":
            backbones = [backbone_of(teacher, recipe.recover.precision) for teacher in teachers]
            shown, known = stand_ins.images(recipe, 2, device), job.first_class + job.num_classes
            lengths = [see(shown).shape[1] for see in backbones]
            wanted = [Directions.between(torch.eye(known, length)) for length in lengths]
            targets = [ClassDirections(of, job, device) for of in wanted]
            matched = MeansStep(recipe, job, backbones, targets, device)
            matched.load(job)
            counter = matched.step
            advances.append(graphs.capture(matched, counter.zero_))
        else:
            made = stand_ins.recover_step(recipe, job, teachers, device)
            counter = made.step
            for turn in turns(recipe, len(teachers), job):
                for (side, _), begun_now in zip(made.stages, made.begun, strict=True):
                    advance = partial(made, turn, made.canvases[side], begun_now)
                    advances.append(graphs.capture(advance, counter.zero_))

    def all_of_them() -> None:
        with arithmetic(recipe.recover.precision):
            for advance in advances:
                counter.zero_()
                advance()

    return all_of_them


def parts_of_recover_step(recipe: Recipe, num_teachers: int, job: Job) -> int:
    """Number of iterations that `recover_step` makes."""
    if recipe.recover.objective in ("features", "means"):
        return 1
    return len(turns(recipe, num_teachers, job)) * len(stages(recipe))


def _plain(recipe: Recipe, count: int, device: torch.device) -> Tensor:
    return stand_ins.images(recipe, count, device).contiguous()


def sweep_step(recipe: Recipe, job: Job, num_classes: int, device: torch.device) -> Step:
    """A sweep of gradient matching over the job's classes, its network's training on real images included."""
    settings = recipe.recover.gradients
    brief = dataclasses.replace(settings, inner=1, pretrain_epochs=0)
    small = dataclasses.replace(recipe, recover=dataclasses.replace(recipe.recover, gradients=brief))
    per_class = max(settings.real_batch, -(-settings.net_images // num_classes))
    labels = np.arange(num_classes).repeat(per_class)
    members = [np.flatnonzero(labels == label) for label in range(num_classes)]
    normalize = Normalization.of(recipe.dataset, device)
    some = normalize.pixels(_plain(recipe, 16, device))
    pixels = some[torch.arange(len(labels), device=device) % len(some)]
    real = RealImages(pixels, torch.from_numpy(labels).to(device), members)
    recoverer = ByGradients(Run(small, Path(), device=device), real)
    recoverer.load(job)
    return _in_precision(recipe.recover.precision, recoverer.advance, 0)


def student_step(
    recipe: Recipe, num_images: int, teachers: Sequence[Teacher], num_classes: int, device: torch.device
) -> Step:
    """A student's update by a batch of so many views, with the labels of these teachers, or hard ones without any."""
    with Stream(recipe.seed, "plan/student").torch_generator():
        net = zoo.channels_last(zoo.trainable(recipe.train.student, num_classes, recipe.dataset.image_size), device)
    train = _with_batch(recipe.train, num_images)
    normalize = Normalization.of(recipe.dataset, device)
    pixels = normalize.pixels(_plain(recipe, num_images, device))
    labels = torch.arange(num_images, device=device) % num_classes
    shown = dataclasses.replace(recipe.labels, pool=1.0)
    views = ReplayedViews(pixels, labels, shown, normalize, recipe.seed)
    source: LabelSource = TeacherLabels(teachers, recipe.labels, recipe.seed) if teachers else hard_labels
    item = next(iter(views.tables(0, train)))

    def make(item: Any) -> Batch:
        batch = views.make(item)
        return Batch(batch.images, source(batch), item.num_views)

    def loss(logits: Tensor, wanted: Any) -> Tensor:
        return student_loss(logits, wanted, recipe.train)

    is_captured = device.type == "cuda" and why_not_captured(recipe, source) is None
    kind = CapturedStep if is_captured else TrainStep
    step = kind(net.train(), make_optimizer(net, train, is_captured), train, loss, make)
    return _in_precision(train.precision, step, item)


def teacher_step(recipe: Recipe, architecture: str, num_images: int, num_classes: int, device: torch.device) -> Step:
    """A teacher's update by a batch of so many real images, which are decoded already."""
    with Stream(recipe.seed, "plan/squeeze").torch_generator():
        net = zoo.channels_last(zoo.trainable(architecture, num_classes, recipe.dataset.image_size), device)
    settings = _with_batch(recipe.squeeze, num_images)
    batch = stand_ins.images(recipe, num_images, device), torch.arange(num_images, device=device) % num_classes
    step = TrainStep(net.train(), make_optimizer(net, settings), settings, F.cross_entropy, as_it_is)
    return _in_precision(settings.precision, step, batch)


def _with_batch(settings: Settings, num_images: int) -> Settings:
    """The settings with batches of so many images, in parts of at most the usual size."""
    part = min(settings.part_size, num_images)
    return dataclasses.replace(settings, batch_size=num_images, accumulate=-(-num_images // part))


def _in_precision(precision: Precision, function: Callable[[Item], object], item: Item) -> Step:
    def step() -> None:
        with arithmetic(precision):
            function(item)

    return step


def forward_step(recipe: Recipe, teachers: Sequence[Teacher], num_images: int, device: torch.device) -> Step:
    """A pass of images through each of the teachers, without gradients, as scores and target statistics need it."""

    def forward(shown: Tensor) -> None:
        with torch.no_grad():
            for teacher in teachers:
                teacher(shown)

    return _in_precision("fp32", forward, stand_ins.images(recipe, num_images, device))
