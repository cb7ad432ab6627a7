"""The best real subset: of those that rules choose, the one whose student knows most of other training images.

The choice is made once, by the students of the first seed, on images of the training split that no rule has chosen; the
test images have no part in it. Teachers have seen those images, whose labels the students imitate: what is compared is
one subset with another, all else being the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from ..data.real import EvaluationImages
from ..recover.representatives import RULES, BaselineRule, shared_representatives
from ..rng import Stream
from ..run import Run
from ..sets.condensed import CondensedSet
from ..teachers.teacher import Teacher
from .arms import Arm
from .kept import arm_folder, begin, read_choice, write_choice
from .students import baseline_rule, score_on, train_arm

HELD_OUT = 5000
"""Training images that students are compared on, at most."""


def train_arms(run: Run, some: Iterable[Arm], condensed: CondensedSet, teachers: Sequence[Teacher]) -> None:
    """Trains the students of arms as `train_arm` does; of the best real subset once that is chosen."""
    for arm in some:
        if arm.images == "best":
            arm = replace(arm, images=_chosen(run, arm, condensed, teachers))
        train_arm(run, arm, condensed, teachers)


def _chosen(run: Run, arm: Arm, condensed: CondensedSet, teachers: Sequence[Teacher]) -> BaselineRule:
    """The rule of the best subset, which is written down; ties go to the first. bps needs a teacher."""
    begin(run, arm, arm_folder(run, arm))
    if (known := read_choice(run, arm)) is not None:
        return known["chosen"]
    rules = [kind for kind in RULES if teachers or kind != "bps"]
    arms = [replace(arm, images=kind) for kind in rules]
    students = [train_arm(run, one, condensed, teachers, 1)[0] for one in arms]
    ids = held_out(run, [np.concatenate(_ids(run, one, teachers)) for one in arms])
    images = EvaluationImages(run.real.train.take(ids), run.recipe.dataset, run.device)
    top1: dict[str, float] = {
        kind: score_on(run, student, images)["top1"] for kind, student in zip(rules, students, strict=True)
    }
    best = cast(BaselineRule, max(top1, key=lambda kind: top1[kind]))
    write_choice(run, arm, {"chosen": best, "top1": top1, "images": len(ids)})
    run.log.say(
        f"best real subset: {best}; on {len(ids)} other training images "
        + ", ".join(f"{kind} {score:.1f} %" for kind, score in top1.items())
    )
    return best


def held_out(run: Run, chosen: Sequence[np.ndarray]) -> np.ndarray:
    """Random training samples that are in none of the subsets, int64 [HELD_OUT] at most. Raises ValueError for none."""
    split = run.real.train
    order = Stream(run.recipe.seed, "baselines/held-out").permutation(len(split))
    rest = order[~np.isin(order, np.concatenate(chosen))]
    if not len(rest):
        raise ValueError(
            "evaluate.baselines best_soft needs training images that no rule chooses; take a smaller --ipc"
        )
    return rest[:HELD_OUT]


def _ids(run: Run, arm: Arm, teachers: Sequence[Teacher]) -> list[np.ndarray]:
    return shared_representatives(run, baseline_rule(arm, teachers), run.recipe.shown_ipc)
