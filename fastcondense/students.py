"""Students: the same network, epochs and views on condensed images, on random real images, and on all real images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from . import zoo
from .condensed import CondensedSet
from .distributed import rank, world_size
from .files import read_json, read_tensors, write_atomic, write_json, write_tensors
from .fit import fit
from .labels import LabelSource, TeacherLabels, hard_labels, student_loss
from .real import split_batches, training_batches
from .recipe import Recipe
from .resident import HostImages, place
from .rng import Stream
from .run import Run
from .score import score
from .settings import Optimization
from .teacher import Teacher
from .train_step import Batch
from .views import BatchTable, ReplayedViews

CONDENSED = "condensed"


@dataclass(frozen=True)
class Student:
    """One trained student: its folder and what was measured while it was trained."""

    folder: Path
    history: list[dict[str, float]]
    seconds: dict[str, float]

    @property
    def top1_best(self) -> float:
        return max(entry["top1"] for entry in self.history)


def arms(run: Run) -> tuple[str, ...]:
    """What students are trained on: the condensed set and the recipe's baselines."""
    return (CONDENSED, *run.recipe.evaluate.baselines)


def student_folder(run: Run, arm: str, number: int) -> Path:
    """students/<student>-<hash of the settings>/<arm>/seed<number>; other settings get another folder."""
    recipe = run.recipe
    parts = (*recipe.train_parts(), *(["evaluate"] if arm == "full" else []))
    slug = recipe.train.student.replace("/", "-").replace(":", "-")
    return run.out / "students" / f"{slug}-{recipe.sha256(*parts)[:8]}" / arm / f"seed{number}"


def train_arm(run: Run, arm: str, condensed: CondensedSet, teachers: Sequence[Teacher]) -> list[Student]:
    """Trains the students of an arm, one a seed; finished ones are read back, an interrupted one goes on."""
    return [_student(run, arm, number, condensed, teachers) for number in range(run.recipe.train.seeds)]


def read_student(run: Run, arm: str, number: int) -> Student:
    """A finished student. Raises ValueError if it is not finished."""
    folder = student_folder(run, arm, number)
    if not (folder / "student.json").exists():
        raise ValueError(f"{folder} holds no finished student; run train first")
    tree = read_json(folder / "student.json")
    return Student(folder, tree["history"], tree["seconds"])


def last_score(run: Run, student: Student) -> dict[str, float]:
    """top1 and top5 of the stored weights, measured anew."""
    state, metadata = read_tensors(student.folder / "weights.safetensors")
    net = zoo.build(metadata["architecture"], len(run.real.classes))
    net.load_state_dict(state)
    net = zoo.channels_last(net, run.device)
    return score(net, run.test_images, run.normalize)


@dataclass(frozen=True)
class Task:
    """What `fit` needs to know of an arm: how it is optimised, what its batches are made from, and their loss."""

    optimization: Optimization
    batches: Callable[[int], Iterable[Any]]
    make: Callable[[Any], Batch]
    loss: Callable[[Tensor, Any], Tensor]
    is_captured: bool = False


def _student(run: Run, arm: str, number: int, condensed: CondensedSet, teachers: Sequence[Teacher]) -> Student:
    folder = student_folder(run, arm, number)
    if (folder / "student.json").exists():
        return read_student(run, arm, number)
    recipe, seed = run.recipe, run.recipe.seed + number
    with Stream(seed, "students/init").torch_generator():
        net = zoo.build(recipe.train.student, len(run.real.classes))
    if recipe.train.sync_batch_norm and world_size() > 1:
        if run.device.type != "cuda":
            raise ValueError("train.sync_batch_norm needs GPUs: PyTorch's synchronised BatchNorm has no CPU version")
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    net = zoo.channels_last(net, run.device)
    task = _task(run, arm, seed, condensed, teachers)
    evaluating = 0.0

    def evaluate(net: nn.Module) -> dict[str, float]:
        nonlocal evaluating
        with run.stopwatch() as watch:
            result = score(net, run.test_images, run.normalize, is_shared=True)
        evaluating += watch.seconds
        return result

    what = f"student on {arm}, seed {seed}"
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
        make=task.make,
        is_captured=task.is_captured,
        is_shared=True,
    )
    student = Student(folder, history, {"train": history[-1]["seconds"], "evaluate": evaluating})
    if rank() == 0:
        _write(run, arm, student, net)
    return student


def _write(run: Run, arm: str, student: Student, net: nn.Module) -> None:
    """A finished student's files; its checkpoint goes."""
    recipe, folder, history = run.recipe, student.folder, student.history
    metadata = {"architecture": recipe.train.student, "classes": json.dumps(run.real.classes), "arm": arm}
    write_tensors(folder / "weights.safetensors", net.state_dict(), metadata)
    write_atomic(folder / "metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in history).encode())
    write_json(folder / "student.json", {"seconds": student.seconds, "history": history})
    (folder / "checkpoint.pt").unlink(missing_ok=True)


def _task(run: Run, arm: str, seed: int, condensed: CondensedSet, teachers: Sequence[Teacher]) -> Task:
    recipe = run.recipe
    if arm == "full":
        return _full_task(run, Stream(seed, "students/full"))
    pixels, labels = condensed.flat() if arm == CONDENSED else run.real_images(recipe.ipc, "baselines/random", seed)
    images = place(pixels, run.device)
    views = ReplayedViews(images, labels.to(run.device), recipe.labels, run.normalize, seed)
    source: LabelSource = hard_labels if arm == "random_hard" else TeacherLabels(teachers, recipe.labels, seed)
    reason = why_not_captured(recipe, source)
    if run.device.type == "cuda":
        where = "host, batch by batch" if isinstance(images, HostImages) else "device"
        run.log.say(
            f"train: images on the {where}; " + (f"no CUDA graph: {reason}" if reason else "steps as CUDA graphs")
        )

    def make(item: BatchTable) -> Batch:
        batch = views.make(item)
        return Batch(batch.images, source(batch), item.num_views)

    return Task(
        recipe.train,
        lambda epoch: views.tables(epoch, recipe.train, rank(), world_size()),
        make,
        lambda logits, wanted: student_loss(logits, wanted, recipe.train),
        is_captured=run.device.type == "cuda" and not reason,
    )


def _full_task(run: Run, stream: Stream) -> Task:
    """Trained as the teacher is: the condensed set's epochs would be hundreds of passes over all images."""
    recipe, split = run.recipe, run.real.train
    optimization = replace(recipe.squeeze, epochs=recipe.evaluate.full_epochs or recipe.squeeze.epochs)
    sizes = [len(batch) for batch in split_batches(np.arange(len(split)), optimization.batch_size)]

    def batches(epoch: int) -> Iterable[Batch]:
        made = training_batches(
            split,
            recipe.dataset,
            recipe.squeeze,
            stream,
            epoch,
            optimization.batch_size,
            run.device,
            rank=rank(),
            world=world_size(),
        )
        return (Batch(images, labels, size) for (images, labels), size in zip(made, sizes, strict=True))

    return Task(optimization, batches, lambda batch: batch, F.cross_entropy)


def why_not_captured(recipe: Recipe, source: LabelSource) -> str | None:
    """What keeps views, labels and update of a batch from being one CUDA graph, in words; None if nothing does."""
    labels = recipe.labels
    if world_size() > 1:
        return "ranks exchange gradients"
    if labels.tile_shuffle > 1 or labels.rand_augment[0]:
        return "labels.tile_shuffle and labels.rand_augment change images from the host"
    if source is not hard_labels and not isinstance(source, TeacherLabels):
        return "labels are read on the host"
    if source is not hard_labels and labels.dropout:
        return "labels.dropout is seeded from the host"
    return None
