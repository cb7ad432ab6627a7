"""Students: the same network, epochs and views on condensed images, on random real images, and on all real images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional as F

from . import zoo
from .condensed import CondensedSet
from .files import read_json, read_tensors, write_atomic, write_json, write_tensors
from .fit import fit
from .formation import shown
from .labels import LabelSource, TeacherLabels, hard_labels, student_loss
from .real import training_batches
from .rng import Stream
from .run import Run
from .score import score
from .settings import Optimization
from .teacher import Teacher
from .views import ReplayedViews

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


def _student(run: Run, arm: str, number: int, condensed: CondensedSet, teachers: Sequence[Teacher]) -> Student:
    folder = student_folder(run, arm, number)
    if (folder / "student.json").exists():
        return read_student(run, arm, number)
    recipe, seed = run.recipe, run.recipe.seed + number
    with Stream(seed, "students/init").torch_generator():
        net = zoo.build(recipe.train.student, len(run.real.classes))
    net = zoo.channels_last(net, run.device)
    optimization, batches, loss = _task(run, arm, seed, condensed, teachers)
    evaluating = 0.0

    def evaluate(net: torch.nn.Module) -> dict[str, float]:
        nonlocal evaluating
        with run.stopwatch() as watch:
            result = score(net, run.test_images, run.normalize)
        evaluating += watch.seconds
        return result

    what = f"student on {arm}, seed {seed}"
    net, history = fit(
        net,
        optimization,
        batches,
        loss,
        evaluate,
        Stream(seed, "students/dropout"),
        folder / "checkpoint.pt",
        lambda entry: run.report_epoch(what, entry, optimization.epochs),
        lambda epochs: run.log.track(epochs, what),
    )
    metadata = {"architecture": recipe.train.student, "classes": json.dumps(run.real.classes), "arm": arm}
    write_tensors(folder / "weights.safetensors", net.state_dict(), metadata)
    write_atomic(folder / "metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in history).encode())
    seconds = {"train": history[-1]["seconds"], "evaluate": evaluating}
    write_json(folder / "student.json", {"seconds": seconds, "history": history})
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return Student(folder, history, seconds)


def _task(run: Run, arm: str, seed: int, condensed: CondensedSet, teachers: Sequence[Teacher]):
    """How an arm is optimised, its batches of an epoch, and its loss."""
    recipe = run.recipe
    if arm == "full":
        stream = Stream(seed, "students/full")
        # Trained as the teacher is: the condensed set's epochs would be hundreds of passes over all images.
        optimization: Optimization = replace(
            recipe.squeeze, epochs=recipe.evaluate.full_epochs or recipe.squeeze.epochs
        )

        def real_batches(epoch: int):
            return training_batches(
                run.real.train, recipe.dataset, recipe.squeeze, stream, epoch, optimization.batch_size, run.device
            )

        return optimization, real_batches, F.cross_entropy

    if arm == CONDENSED:
        pixels, labels = shown(recipe, condensed)
    else:
        pixels, labels = run.real_images(recipe.shown_ipc, "baselines/random", seed)
    views = ReplayedViews(pixels.to(run.device), labels.to(run.device), recipe.labels, run.normalize, seed)
    is_hard = arm == "random_hard" or recipe.labels.source == "hard"
    source: LabelSource = hard_labels if is_hard else TeacherLabels(teachers, recipe.labels, seed)

    def batches(epoch: int):
        return ((batch.images, source(batch)) for batch in views.epoch(epoch, recipe.train))

    return recipe.train, batches, lambda logits, wanted: student_loss(logits, wanted, recipe.train)
