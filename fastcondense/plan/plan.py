"""`fastcondense plan`: jobs, memory, disk and time of a run, before it begins and without its data or teachers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from ..data.jobs import Job, jobs, with_batch_size
from ..devices import fastest_arithmetic
from ..labels.resident import are_held
from ..networks.precision import one_thread
from ..recipe.precision import precisions, settled
from ..recipe.recipe import Recipe
from ..students.costs import views_an_epoch
from ..students.frozen import REAL_VIEWS
from ..teachers.kept import chosen
from ..teachers.teacher import Teacher
from . import stand_ins, steps
from .disk import disk_bytes
from .extent import Extent
from .job_size import check_fits, has_step, largest_batch, recover_footprint
from .memory import Footprint, meter, resident_bytes, usable_bytes
from .timing import Timing, time_steps
from .work import crops_a_class, makespan, num_anchors

PARTS = ("squeeze", "recover", "train", "memory", "disk")
"""What is measured one after the other; with train goes evaluate."""


@dataclass(frozen=True)
class StageTime:
    """Seconds of a stage on one worker and on all of them, and what that is known from."""

    name: str
    one: float
    wall: float
    source: str


class Plan:
    """What a run will need; times and memory are measured when they are asked for, within about `budget` seconds.

    jobs: what recover makes. free: bytes that a job may take here; itself: bytes of host memory of the process without
    any of that. notes: what else there is to say, complete once all is measured.
    """

    def __init__(self, recipe: Recipe, size: Extent, num_workers: int, device: torch.device, budget: float = 60.0):
        self.size, self.num_workers, self.device, self.budget = size, num_workers, device, budget
        self.notes: list[str] = []
        native, single, why = fastest_arithmetic(device)
        if "auto" in precisions(recipe).values():
            recipe = settled(recipe, native, single)
            self.notes.append(f"precision auto would be {native} here: {why}")
        self.free, self.itself = usable_bytes(device), resident_bytes()
        self.footprint: Footprint | None = None
        if has_step(recipe):
            self.footprint = recover_footprint(recipe, size.num_classes, device)
        if recipe.recover.batch_size == 0:
            if self.footprint is None:
                raise ValueError("recover.batch_size 0 needs recover.objective statistics and iterations above 0")
            batch_size = largest_batch(recipe, size.num_classes, self.footprint, self.free)
            recipe = with_batch_size(recipe, batch_size)
            self.notes.append(f"recover.batch_size 0 would be {batch_size} with the memory that is free here")
        elif self.footprint is not None:
            try:
                check_fits(recipe, size.num_classes, self.footprint, self.free)
            except ValueError as error:
                self.notes.append(f"recover would refuse here: {error}")
        self.recipe, self.jobs = recipe, jobs(recipe, size.num_classes)
        self._stages: dict[str, list[StageTime]] = {}

    def measure(self, part: str) -> None:
        """Measures one of PARTS, unless it is already."""
        if part in ("memory", "disk"):
            getattr(self, part)
        elif part not in self._stages:
            measured = getattr(self, f"_{part}")()
            self._stages[part] = measured if isinstance(measured, list) else [measured]

    @property
    def times(self) -> list[StageTime]:
        """Seconds of each stage."""
        for part in PARTS[:3]:
            self.measure(part)
        return [stage for part in PARTS[:3] for stage in self._stages[part]]

    def wall(self, name: str) -> float:
        """Seconds of a stage on all workers."""
        return next(stage.wall for stage in self.times if stage.name == name)

    @cached_property
    def disk(self) -> dict[str, int]:
        """Bytes on disk, by part."""
        return disk_bytes(self.recipe, self.size, self._matched())

    # --- what is measured --------------------------------------------------------------------------------------------

    @cached_property
    def teachers(self) -> list[Teacher]:
        """Stand-ins of all teachers."""
        architectures = self.recipe.squeeze.teachers
        return [stand_ins.teacher(self.recipe, name, self.size.num_classes, self.device) for name in architectures]

    def _matched(self) -> list[Teacher]:
        return chosen(self.teachers, self.recipe.recover.teachers)

    def _timed(self, make: Callable[[int], steps.Step], wanted: int, share: float, first: int = 4) -> Timing:
        return time_steps(make, wanted, self.device, share * self.budget, first)

    def _forward(self, teachers: list[Teacher]) -> Callable[[float], float]:
        """Seconds in which so many images go through the teachers, in batches of 128."""
        if not teachers:
            return lambda _count: 0.0
        made = self._timed(lambda n: steps.forward_step(self.recipe, teachers, n, self.device), 128, 0.1)
        return lambda count: count * made.at(128) / 128

    # --- stages ------------------------------------------------------------------------------------------------------

    def _squeeze(self) -> StageTime:
        """The time of squeeze: each teacher is made by one worker, or with squeeze.shared by all together."""
        size, squeeze = self.size, self.recipe.squeeze
        gate = squeeze.gate_images * size.num_classes
        forward, share = self._forward(self.teachers), 1 / max(1, len(self.teachers))
        checks = forward(gate + size.num_test) * share
        workers = self.num_workers if squeeze.shared else 1
        each, together = list[float](), 0.0
        sources = ["a forward pass"] if self.teachers else []
        for architecture, source in squeeze.sources.items():
            if source != "train" or squeeze.self_supervision.method != "none":
                each.append(checks)
                together += checks
                continue
            timing = self._timed(partial(self._teacher_step, architecture), squeeze.batch_size, 0.15 * share)
            updates = squeeze.epochs * math.ceil(size.num_train / squeeze.batch_size)
            interval = squeeze.evaluation_interval(size.num_train, size.num_test)
            scoring = math.ceil(squeeze.epochs / interval) * forward(size.num_test) * share
            each.append(updates * timing.at(squeeze.batch_size) + scoring + checks)
            together += updates * timing.at(squeeze.batch_size / workers) + scoring + checks
            sources.append(_known_from("an update", timing, squeeze.batch_size, workers, "images"))
        if squeeze.self_supervision.method != "none" or "train" in squeeze.probe_weights:
            self.notes.append("squeeze: self-supervised training and linear probes are not in its time")
        wall = together if squeeze.shared else makespan(each, self.num_workers)
        return StageTime("squeeze", sum(each), wall, "; ".join(dict.fromkeys(sources)) or "no teacher")

    def _teacher_step(self, architecture: str, count: int) -> steps.Step:
        return steps.teacher_step(self.recipe, architecture, count, self.size.num_classes, self.device)

    def _recover(self) -> StageTime:
        recipe, recover, size = self.recipe, self.recipe.recover, self.size
        with one_thread(self.device) if recover.reproducible else nullcontext():
            seconds, source = self._job_seconds()
        one, wall = sum(seconds), makespan(seconds, self.num_workers)
        shared = 0.0
        if recover.initial.kind == "mosaic" and recover.objective != "gradients":
            observers = chosen(self.teachers, recover.initial.teachers)
            shared += self._forward(observers)(crops_a_class(recipe, size)[0] * size.num_classes)
            source += "; scores of crops from a forward pass"
        needs_targets = set(recover.statistics) != {"bn"} or set(recover.targets) != {"global"}
        if has_step(recipe) and needs_targets:
            shared += self._forward(self._matched())(size.num_train)
            source += "; target statistics from a forward pass"
        if recover.anchors == "retrieved":
            observers = chosen(self.teachers, recover.initial.teachers)[:1]
            shared += self._forward(observers)(num_anchors(recipe, size) * size.num_classes)
            source += "; pools of anchors from a forward pass"
        if recover.objective == "means":
            is_constant = recover.means.target != "gradient"
            count = size.num_train * recover.means.real_views if is_constant else recover.iterations * len(self.jobs)
            count *= 1 + (recipe.ipc > 1) if is_constant else recover.means.real_batch  # means of classes, and of parts
            shared += self._forward(self._matched())(count)
            source += f"; {'class means' if is_constant else 'real views'} from a forward pass"
        return StageTime("recover", one + shared, wall + shared / self.num_workers, source)

    def _job_seconds(self) -> tuple[list[float], str]:
        """Seconds of every job, and what they are known from."""
        recipe, recover, size = self.recipe, self.recipe.recover, self.size
        first = self.jobs[0]
        if recover.objective == "gradients":
            sweeps = self._timed(
                lambda n: steps.sweep_step(recipe, Job(0, 0, first.num_slots, 0, n), size.num_classes, self.device),
                first.num_classes,
                0.4,
                first=1,
            )
            if recover.gradients.pretrain_epochs:
                self.notes.append("recover: the pretraining of matched networks is not in its time")
            count = recover.iterations * recover.gradients.inner
            source = _known_from("a sweep", sweeps, first.num_classes, 1, "classes")
            return [count * sweeps.at(job.num_classes) for job in self.jobs], source
        if not recover.iterations:
            return [0.0] * len(self.jobs), "images stay as they begin"
        matched = self._matched()

        def make(count: int) -> steps.Step:
            job = stand_ins.smaller(first, count, size.num_classes)
            return steps.recover_step(recipe, job, matched, self.device)

        timing = self._timed(make, first.num_images, 0.4)
        parts = steps.parts_of_recover_step(recipe, len(matched), first)
        source = _known_from("an iteration", timing, first.num_images, 1, "images")
        return [recover.iterations * timing.at(job.num_images) / parts for job in self.jobs], source

    def _train(self) -> list[StageTime]:
        recipe, train, size = self.recipe, self.recipe.train, self.size
        if train.frozen:
            return self._probes()
        labellers = chosen(self.teachers, recipe.labels.teachers)
        views, batch = views_an_epoch(recipe, size.num_classes), train.batch_size
        batch = min(batch, views)

        def timing(teachers: list[Teacher]) -> Timing:
            def make(count: int) -> steps.Step:
                return steps.student_step(recipe, count, teachers, size.num_classes, self.device)

            return self._timed(make, batch, 0.15)

        arms = ["condensed", *recipe.evaluate.baselines]
        soft = timing(labellers) if recipe.labels.source != "hard" else None
        hard = timing([])
        one = wall = 0.0
        for arm in arms:
            made = soft if soft is not None and (arm == "condensed" or arm.endswith("_soft")) else hard
            count, epochs, at_once = views, train.epochs, batch
            if arm == "full":
                count, epochs = size.num_train, recipe.evaluate.full_epochs or recipe.squeeze.epochs
                at_once = recipe.squeeze.batch_size
            students = train.seeds + 2 * (arm == "best_soft")  # those of the two other rules
            updates = students * epochs * math.ceil(count / at_once)
            one += updates * made.at(at_once)
            wall += updates * made.at(at_once / self.num_workers)
        source = _known_from("an update", soft or hard, batch, self.num_workers, "views")
        with_student = dataclasses.replace(recipe, recover=dataclasses.replace(recipe.recover, statistics=("bn",)))
        student = stand_ins.teacher(with_student, train.student, size.num_classes, self.device)
        times = len(arms) * train.seeds * math.ceil(train.epochs / train.evaluation_interval(views, size.num_test))
        scoring = times * self._forward([student])(size.num_test)
        return [
            StageTime("train", one, wall, source),
            StageTime("evaluate", scoring, scoring / self.num_workers, "a forward pass"),
        ]

    def _probes(self) -> list[StageTime]:
        """The times of frozen students, whose linear layers take next to nothing beside the features of their views."""
        recipe, size, has_full = self.recipe, self.size, "full" in self.recipe.evaluate.baselines
        arms = 1 + len(recipe.evaluate.baselines) - has_full
        views = arms * recipe.train.seeds * recipe.shown_ipc * size.num_classes * recipe.train.frozen_views
        forward = self._forward(chosen(self.teachers, [recipe.train.student]))
        seconds = forward(views + REAL_VIEWS * size.num_train * has_full), forward(size.num_test)
        names = "train", "evaluate"
        return [StageTime(name, one, one, "a forward pass") for name, one in zip(names, seconds, strict=True)]

    # --- memory ------------------------------------------------------------------------------------------------------

    @cached_property
    def memory(self) -> dict[str, tuple[int, str]]:
        """Bytes of each stage on a worker, and what they are known from."""
        recipe, size = self.recipe, self.size
        how = f"{'measured' if self.device.type == 'cuda' else 'computed'} at 2 and 4 images"
        found: dict[str, tuple[int, str]] = {}
        trained = [name for name, source in recipe.squeeze.sources.items() if source == "train"]
        workers = self.num_workers if recipe.squeeze.shared else 1
        part = min(recipe.squeeze.part_size, math.ceil(recipe.squeeze.batch_size / workers))
        prints = [self._footprint(partial(self._teacher_step, name)) for name in trained]
        if prints:
            found["squeeze"] = max(one.at(part) for one in prints), how
        largest = max(job.num_images for job in self.jobs)
        if self.footprint is not None:
            found["recover"] = self.footprint.at(largest), how
        names = recipe.labels.teachers or recipe.squeeze.teachers
        names = names if recipe.labels.source != "hard" else ()

        def student(count: int) -> steps.Step:
            if recipe.train.frozen:
                seen = stand_ins.teacher(recipe, recipe.train.student, size.num_classes, self.device)
                return steps.forward_step(recipe, [seen], count, self.device)
            teachers = [stand_ins.teacher(recipe, name, size.num_classes, self.device) for name in names]
            return steps.student_step(recipe, count, teachers, size.num_classes, self.device)

        part = min(recipe.train.part_size, math.ceil(recipe.train.batch_size / self.num_workers))
        images = views_an_epoch(recipe, size.num_classes) * 3 * recipe.dataset.image_size**2
        is_held = are_held(images, self.device)
        where = "and all condensed images" if is_held else "and condensed images stay in their files"
        found["train"] = self._footprint(student).at(part) + images * is_held, f"{how}, {where}"
        return found

    def _footprint(self, make: Callable[[int], steps.Step]) -> Footprint:
        with meter(self.device) as count:

            def bytes_at(num_images: int) -> int:
                step = make(num_images)
                step()
                count.restart()
                step()
                return count.peak

            return Footprint.of(bytes_at)


def _known_from(what: str, timing: Timing, wanted: int, num_workers: int, unit: str) -> str:
    """A text that says which sizes were measured, and whether what is told lies beyond them."""
    sizes = ", ".join(map(str, sorted(timing.seconds)))
    text = f"{what} measured with {sizes} {unit}"
    if wanted not in timing.seconds:
        text += f", extrapolated to {wanted}"
    return text + (f", shared by {num_workers} workers without the cost of talking" if num_workers > 1 else "")
