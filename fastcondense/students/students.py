"""Students: the same network, epochs and views on condensed images, on some real images, and on all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import trust
from ..data.real import EvaluationImages
from ..devices import stopwatch
from ..files import write_atomic, write_json
from ..labels.labels import LabelSource, hard_labels, label_source, scheduled, student_loss
from ..labels.resident import place
from ..labels.stored_labels import read_labels
from ..labels.view_tables import BatchTable
from ..labels.views import ReplayedViews
from ..loaders.reading import naming
from ..networks import zoo
from ..networks.fit import fit
from ..networks.score import Labelled, per_class, score
from ..networks.train_step import Batch, synchronised
from ..recipe.settings import Optimization
from ..recover.formation import shown
from ..recover.own import own_baseline
from ..recover.representatives import RULES, Rule, RuleName, representative_images, unread_squares
from ..rng import Stream
from ..run import Run
from ..sets.condensed import CondensedSet
from ..sets.stored_images import Images
from ..student_records import Confusion, Epoch
from ..teachers.teacher import Teacher
from ..tensor_files import read_tensors, write_tensors
from ..user_functions import is_own
from ..workers.distributed import once, rank, world_size
from .arms import CONDENSED, WHOLE, Arm
from .closest import closest_images
from .frozen import FrozenStudent
from .kept import Student, begin, read_student, student_folder
from .real_views import RealBatch, real_batches, real_views
from .task import Task, why_not_captured


def train_arm(
    run: Run, arm: Arm, condensed: CondensedSet, teachers: Sequence[Teacher], count: int = 0
) -> list[Student]:
    """Trains the students of an arm, one a seed, or `count` of them; finished ones are read back, an interrupted one
    goes on.

    All ranks call this; when it returns, every student's files are there.
    """
    return [_student(run, arm, number, condensed, teachers) for number in range(count or run.recipe.train.seeds)]


def score_on(run: Run, student: Student, images: EvaluationImages) -> dict[str, float]:
    """top1 and top5 of the stored weights on other images than the test images; all ranks call this and share them."""
    path = student.folder / "weights.safetensors"
    state, _ = read_tensors(path)
    net, _ = _untrained(run)
    with naming(path):
        net.load_state_dict(state)
    return score(zoo.channels_last(net, run.device), images, run.normalize, is_shared=True)


def _untrained(run: Run) -> tuple[nn.Module, tuple[Labelled, Callable[[Tensor], Tensor]]]:
    """The network that a student trains, and what it is scored on: test images, and how they become its inputs."""
    if run.recipe.train.frozen:
        frozen = FrozenStudent.of(run)
        return frozen.layer(), (frozen.test, lambda features: features)
    name, count = run.recipe.train.student, len(run.real.classes)
    net = zoo.trainable(name, count, run.recipe.dataset.image_size)
    return net, (run.test_images, run.normalize)


def check_student(run: Run) -> None:
    """Raises ValueError, long before there is something to train it on, for a student that cannot be trained."""
    if not run.recipe.train.frozen and (trust.is_given(student := run.recipe.train.student) or not is_own(student)):
        with Stream(run.recipe.seed, "students/init").torch_generator():
            _untrained(run)


def _student(run: Run, arm: Arm, number: int, condensed: CondensedSet, teachers: Sequence[Teacher]) -> Student:
    folder = student_folder(run, arm, number)
    begin(run, arm, folder)
    if (folder / "student.json").exists():
        return read_student(run, arm, number)
    recipe, seed = run.recipe, run.recipe.seed + number
    with Stream(seed, "students/init").torch_generator():
        net, scored = _untrained(run)
    if recipe.train.sync_batch_norm:
        net = synchronised(net, run.device, "train.sync_batch_norm")
    net = zoo.channels_last(net, run.device)
    task = task_of(run, arm, seed, condensed, teachers)
    evaluating = 0.0
    answers = torch.zeros(2 * (len(run.real.classes),), dtype=torch.int64, device=run.device)

    def evaluate(net: nn.Module) -> dict[str, float]:
        nonlocal evaluating
        answers.zero_()
        with stopwatch(run.device) as watch:
            result = score(net, *scored, is_shared=True, answers=answers)
        evaluating += watch.seconds
        return result

    what = f"student on {arm.name}, seed {seed}"
    net, history = fit(
        net,
        task.optimization,
        task.batches,
        task.loss,
        evaluate,
        Stream(seed, "students/dropout"),
        folder / "checkpoint.pt",
        lambda entry: run.report_epoch(what, entry, task.optimization.epochs),
        lambda epochs: run.log.track(epochs, what),
        num_scored=len(run.real.test),
        make=task.make,
        is_captured=task.is_captured,
        is_shared=True,
    )
    if not answers.any():  # it was stopped between its last epoch and here
        evaluate(net)
    student = Student(
        folder,
        cast(list[Epoch], history),
        {"train": history[-1]["seconds"], "evaluate": evaluating},
        cast(Confusion, per_class(answers)),
        world_size(),
    )
    once(lambda: _write(run, arm, student, net))
    return student


def _write(run: Run, arm: Arm, student: Student, net: nn.Module) -> None:
    """A finished student's files; its checkpoint goes."""
    recipe, folder, history = run.recipe, student.folder, student.history
    metadata = {"architecture": recipe.train.student, "classes": json.dumps(run.real.classes), "arm": arm.name}
    write_tensors(folder / "weights.safetensors", net.state_dict(), metadata)
    write_atomic(folder / "metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in history).encode())
    told = {"seconds": student.seconds, "history": history, "classes": student.classes, "workers": student.workers}
    write_json(folder / "student.json", told)
    (folder / "checkpoint.pt").unlink(missing_ok=True)


def task_of(run: Run, arm: Arm, seed: int, condensed: CondensedSet, teachers: Sequence[Teacher]) -> Task:
    """What the student of a seed is trained on in an arm. Of the run, the condensed arm needs no real images."""
    recipe = run.recipe
    if recipe.train.frozen:
        frozen, is_full = FrozenStudent.of(run), arm.images == "full"
        seen = frozen.real if is_full else frozen.views(*_images_of(run, arm, seed, condensed, teachers), seed)
        return frozen.task(seen, seed, is_full=is_full)
    optimization: Optimization = recipe.train
    if arm == Arm("full", "hard", arm.views, arm.lr):
        optimization = replace(recipe.squeeze, epochs=recipe.evaluate.full_epochs or recipe.squeeze.epochs)
    if arm.lr is not None:
        optimization = replace(optimization, lr=arm.lr)
    labels = "hard" if arm.labels == "hard" or recipe.needs_no_teacher else "teachers"
    if labels == "teachers" and replace(arm, lr=None) == CONDENSED:
        labels = recipe.labels.source
    source: LabelSource = (
        hard_labels if labels == "hard" else label_source(recipe.labels, teachers, len(condensed.classes), seed)
    )

    def loss(logits: Tensor, wanted: Any) -> Tensor:
        return student_loss(logits, wanted, recipe.train)

    if arm.images == "full" and arm.labels == "soft":
        fresh = real_views(run, seed, arm.seen(recipe.labels))

        label = scheduled(source, recipe.train)

        def make_view(item: RealBatch) -> Batch:
            batch = item[0].make(item[1])
            return Batch(batch.images, label(batch), item[1].num_views)

        return Task(optimization, fresh, make_view, loss)
    if arm.images == "full":
        shown_views = WHOLE if arm.views == "plain" else recipe.squeeze
        batches = real_batches(run, shown_views, seed, optimization.batch_size)
        return Task(optimization, batches, lambda batch: Batch(batch.images, source(batch), len(batch.whole)), loss)

    views = _replayed(run, arm, seed, condensed, teachers)
    if labels == "stored":
        views, source = read_labels(run, condensed, views, teachers, seed)
    reason = why_not_captured(recipe, source)
    if run.device.type == "cuda":
        where = "device" if views.host is None else "host, batch by batch"
        run.log.say(
            f"train: images on the {where}; " + (f"no CUDA graph: {reason}" if reason else "steps as CUDA graphs")
        )

    label = source if labels == "hard" else scheduled(source, recipe.train)

    def make(item: BatchTable) -> Batch:
        batch = views.make(item)
        return Batch(batch.images, label(batch), item.num_views)

    return Task(
        optimization,
        lambda epoch: views.tables(epoch, recipe.train, rank(), world_size()),
        make,
        loss,
        is_captured=run.device.type == "cuda" and not reason,
        count=lambda epoch: len(views.spans(epoch, recipe.train)),
    )


def _replayed(run: Run, arm: Arm, seed: int, condensed: CondensedSet, teachers: Sequence[Teacher]) -> ReplayedViews:
    """Views of the condensed images, or of real ones."""
    recipe = run.recipe
    pixels, labels = _images_of(run, arm, seed, condensed, teachers)
    settings = arm.seen(recipe.labels)
    return ReplayedViews(place(pixels, run.device), labels.to(run.device), settings, run.normalize, seed)


def _images_of(
    run: Run, arm: Arm, seed: int, condensed: CondensedSet, teachers: Sequence[Teacher]
) -> tuple[Images, Tensor]:
    """The images of an arm, but for that of all real ones: uint8 [N, 3, S, S] and int64 labels [N]."""
    recipe = run.recipe
    if arm.images == "condensed":
        return shown(recipe, condensed)
    if arm.images in RULES:
        return representative_images(run, baseline_rule(arm, teachers), recipe.shown_ipc)
    if arm.images in ("nearest", "aligned"):
        return closest_images(run, arm.images, recipe.shown_ipc)
    if is_own(arm.images):
        return own_baseline(run, arm.images, recipe.shown_ipc, seed)
    ids = run.real_ids(recipe.shown_ipc, "baselines/random", seed)
    return unread_squares(run, ids), torch.from_numpy(run.real.train.labels[ids])


def baseline_rule(arm: Arm, teachers: Sequence[Teacher]) -> Rule:
    """The rule that chooses an arm's real images; teachers: those that label."""
    return Rule(cast(RuleName, arm.images), teachers[0] if teachers else None)
