"""One set at several sizes: `evaluate --ipc 1,2,5` scores its first images a class, beside sets made in other ways.

The set itself ("nested"); A, sets made for each size alone; B, sets of one image a class from other seeds, together
(baselines of Multisize Dataset Condensation, ICLR'24).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from ..devices import versions
from ..recipe.recipe import Recipe, sha256_of
from ..recover.formation import has_scattered_subsets
from ..recover.stage import condensed_set, made_jobs, recover
from ..run import Run
from ..sets.condensed import CondensedSet
from ..sets.results import keep
from ..squeeze.stage import squeeze
from ..teachers.kept import chosen, lend_teachers
from ..workers.distributed import once
from .arms import CONDENSED, arms
from .best_subset import train_arms
from .evaluate import scores


def evaluate_sizes(run: Run) -> dict[str, Any]:
    """Trains what is missing and writes a file of results/curve, and curve.json; returns what is written.

    Scores are top-1 of the last epoch, mean and deviation over seeds, at each size, by what students were trained on.
    """
    sizes = sorted(set(run.recipe.evaluate.sizes))
    made = max(job.first_slot + job.num_slots for job in made_jobs(run))
    if sizes[-1] > made:
        raise ValueError(f"the set has {made} images a class, --ipc asks for {sizes[-1]}")
    curves: dict[str, dict[str, Any]] = {}
    for size in sizes:
        for name, of_size, condensed in _sets(run, size, made):
            teachers = chosen(squeeze(of_size), of_size.recipe.labels.teachers)
            for arm in arms(of_size) if name == "nested" else (CONDENSED,):
                train_arms(of_size, [arm], condensed, teachers)
                key = name if arm == CONDENSED else arm.name
                curves.setdefault(key, {})[str(size)] = scores(of_size, arm)["top1_last"]
    result = {
        "recipe": run.recipe.name,
        "recipe_sha256": run.recipe.sha256(),
        "student": run.recipe.train.student,
        "epochs": run.recipe.train.epochs,
        "seed": run.recipe.seed,
        "seeds": run.recipe.train.seeds,
        "sizes": sizes,
        "top1_last": curves,
        "versions": versions(),
    }
    decided_by = sha256_of({"recipe": run.recipe.sha256(), "sizes": sizes, "compare": run.recipe.evaluate.compare})
    once(lambda: keep(run.out, "curve", run.recipe, result, decided_by))
    return result


def _sets(run: Run, size: int, made: int) -> Iterator[tuple[str, Run, CondensedSet]]:
    """The sets that are compared at a size, of a set of `made` images a class: a name, the run whose folder keeps the
    students, and the images.
    """
    of_size = replace(run, recipe=_of_size(run.recipe, size, made))
    yield "nested", of_size, condensed_set(of_size)
    for kind in run.recipe.evaluate.compare:
        if kind == "independent":
            alone = _beside(run, f"independent-ipc{size}", ipc=size)
            recover(alone, squeeze(alone))
            yield kind, alone, condensed_set(alone)
        else:
            single = [_beside(run, f"stacked-{k}", ipc=1, seed=run.recipe.seed + k) for k in range(size)]
            for one in single:
                recover(one, squeeze(one))
            images = torch.cat([condensed_set(one).images for one in single], dim=1)
            yield kind, _beside(run, "stacked", ipc=size), CondensedSet(images, run.real.classes)


def _of_size(recipe: Recipe, size: int, made: int) -> Recipe:
    """The recipe whose students see the set of a size: its first images, or if these are no set its first tiles."""
    is_whole = size == made or not has_scattered_subsets(recipe)
    train = replace(recipe.train, prefix=0 if is_whole else size)
    return replace(recipe, ipc=size if is_whole else made, train=train)


def _beside(run: Run, name: str, **changes: Any) -> Run:
    """A run in compare/ of this run's folder with other settings and the same teachers."""
    settings = replace(run.recipe, evaluate=replace(run.recipe.evaluate, baselines=()), **changes)
    settings = replace(settings, train=replace(settings.train, prefix=0)).check()
    other = replace(run, recipe=settings, out=run.out / "compare" / name, kept={})
    once(lambda: lend_teachers(run, other))
    return other
