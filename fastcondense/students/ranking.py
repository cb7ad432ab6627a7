"""The stage that computes DD-Ranking's scores: how good the images are, apart from their labels and views.

Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation", arXiv:2505.13300. Accuracies are fractions
here, as the scores' range [0, 1] needs; version 0.2.0 of their package, ddranking, puts per cent into the exponentials.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..devices import versions
from ..networks.fit import Divergence
from ..recipe.recipe import sha256_of
from ..recipe.settings import Ranking
from ..records import spread
from ..recover.stage import condensed_set
from ..run import Run
from ..sets.condensed import CondensedSet
from ..sets.results import keep
from ..teachers.kept import labelling_teachers
from ..teachers.teacher import Teacher
from ..workers.distributed import once
from .arms import Arm
from .kept import Student
from .students import train_arm

LastOrBest = Literal["last", "best"]
EPOCHS: tuple[LastOrBest, ...] = ("last", "best")


def normalized(difference: float) -> float:
    """(e^d - e^-1) / (e - e^-1) of a difference of accuracies in [-1, 1]: from 0 to 1, and 0.269 for none."""
    return (math.exp(difference) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robust_score(recovery: float, improvement: float, weight: float = 0.5) -> float:
    """LRS from hard label recovery, Acc(real, hard) - Acc(condensed, hard), and the improvement over random images."""
    return normalized(weight * improvement - (1 - weight) * recovery)


def augmentation_robust_score(augmented: float, plain: float, weight: float = 0.5) -> float:
    """ARS from the improvements over random images with the recipe's views and without."""
    return normalized(weight * augmented + (1 - weight) * plain)


@dataclass(frozen=True)
class Arms:
    """The arms whose students' accuracies the scores compare."""

    real_hard: Arm
    condensed_hard: Arm
    condensed: Arm
    random: Arm
    condensed_plain: Arm
    random_plain: Arm

    @staticmethod
    def of(settings: Ranking) -> Arms:
        """The arms that the settings mean; some of them may be the same."""
        return Arms(
            Arm("full", "hard", "plain"),
            Arm("condensed", "hard", "plain"),
            Arm("condensed", settings.labels),
            Arm("random", settings.labels),
            Arm("condensed", settings.labels, "plain"),
            Arm("random", settings.labels, "plain"),
        )


def rank(run: Run) -> dict[str, Any]:
    """Trains the students that are missing, writes a file of results/ranking and ranking.json; returns what is written.

    The scores are taken seed by seed, from the students' last epochs and from their best ones. Raises ValueError if
    no learning rate of an arm trains without divergence.
    """
    recipe, settings = run.recipe, run.recipe.ranking
    if recipe.train.frozen:
        raise ValueError("DD-Ranking's scores are of students that are trained as a whole; leave out train.frozen")
    run.real.check_counts(recipe.ipc, f"rank at ipc {recipe.ipc}")
    teachers, condensed = labelling_teachers(run), condensed_set(run)
    arms = Arms.of(settings)
    measured: dict[Arm, dict[str, Any]] = {}
    for arm in vars(arms).values():
        if arm not in measured:
            is_known = arm == arms.real_hard and settings.real_accuracy
            measured[arm] = _known(run) if is_known else _measure(run, arm, condensed, teachers)
    result = {
        "recipe": recipe.name,
        "recipe_sha256": recipe.sha256(),
        "dataset": recipe.dataset.name,
        "method": recipe.method,
        "ipc": recipe.shown_ipc,
        "student": recipe.train.student,
        "teachers": list(recipe.squeeze.teachers),
        "epochs": recipe.train.epochs,
        "seed": recipe.seed,
        "seeds": recipe.train.seeds,
        "test_images": len(run.real.test),
        "ranking": dataclasses.asdict(settings),
        "arms": {
            arm.name: {"images": arm.images, "labels": arm.labels, "views": arm.views} | entry
            for arm, entry in measured.items()
        },
        "scores": {f"top1_{epoch}": _scores(arms, measured, epoch) for epoch in EPOCHS},
        "versions": versions(),
    }
    decided_by = sha256_of({"recipe": recipe.sha256(), "ranking": result["ranking"]})
    once(lambda: keep(run.out, "ranking", recipe, result, decided_by))
    run.log.event("ranking", scores=result["scores"])
    return result


def _known(run: Run) -> dict[str, Any]:
    """The accuracy on all real images that the recipe names, in place of students."""
    seeds = [run.recipe.ranking.real_accuracy] * run.recipe.train.seeds
    return {f"top1_{epoch}": spread(seeds) | {"lr": None} for epoch in EPOCHS} | {"seconds": 0.0}


def _measure(run: Run, arm: Arm, condensed: CondensedSet, teachers: Sequence[Teacher]) -> dict[str, Any]:
    """Top-1 in per cent of an arm's students: of each seed, with its most accurate learning rate."""
    students = _students(run, arm, condensed, teachers)
    entry: dict[str, Any] = {}
    for epoch in EPOCHS:
        best = [
            max((_top1(of_seed, epoch), lr) for lr, of_seed in zip(students, each, strict=True))
            for each in zip(*students.values(), strict=True)
        ]
        seeds = [top1 for top1, _ in best]
        entry[f"top1_{epoch}"] = spread(seeds) | {"lr": [lr for _, lr in best]}
    every = [student for of_lr in students.values() for student in of_lr]
    return entry | {"seconds": sum(student.seconds["train"] for student in every)}


def _students(run: Run, arm: Arm, condensed: CondensedSet, teachers: Sequence[Teacher]) -> dict[float, list[Student]]:
    """The arm's students by learning rate; those that diverge are left out, and said so."""
    recipe, rates = run.recipe, run.recipe.ranking.learning_rates
    if arm.images == "full" or not rates:
        own = recipe.squeeze.lr if arm.images == "full" else recipe.train.lr
        return {own: train_arm(run, arm, condensed, teachers)}
    students: dict[float, list[Student]] = {}
    for lr in rates:
        try:
            of_lr = arm if lr == recipe.train.lr else replace(arm, lr=lr)  # those of train and evaluate are shared
            students[lr] = train_arm(run, of_lr, condensed, teachers)
        except Divergence as error:
            run.log.say(f"rank: {arm.name} with learning rate {lr} is left out: {error}")
    if not students:
        raise ValueError(f"rank: all ranking.learning_rates diverged on {arm.name}; name smaller ones")
    return students


def _top1(student: Student, epoch: LastOrBest) -> float:
    return student.top1_best if epoch == "best" else student.history[-1]["top1"]


def _scores(arms: Arms, measured: dict[Arm, dict[str, Any]], epoch: LastOrBest) -> dict[str, Any]:
    """The differences in percentage points, the two scores in [0, 1], each as mean, deviation and seed by seed."""
    accuracies = {
        name: [top1 / 100 for top1 in measured[arm][f"top1_{epoch}"]["seeds"]] for name, arm in vars(arms).items()
    }

    def difference(one: str, other: str) -> list[float]:
        return [a - b for a, b in zip(accuracies[one], accuracies[other], strict=True)]

    recovery = difference("real_hard", "condensed_hard")
    augmented, plain = difference("condensed", "random"), difference("condensed_plain", "random_plain")
    lrs = [label_robust_score(*pair) for pair in zip(recovery, augmented, strict=True)]
    ars = [augmentation_robust_score(*pair) for pair in zip(augmented, plain, strict=True)]
    values = {
        "hard_label_recovery": [100 * x for x in recovery],
        "improvement_over_random": [100 * x for x in augmented],
        "improvement_over_random_plain": [100 * x for x in plain],
        "label_robust_score": lrs,
        "augmentation_robust_score": ars,
    }
    return {name: spread(each) for name, each in values.items()}
