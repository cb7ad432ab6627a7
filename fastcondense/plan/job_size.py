"""How many images a job may have: recover.batch_size 0 is what fits, and what cannot fit is refused before any work.

A job's images depend on how many there are, and so not on the memory that happens to be free: the number is chosen
once, for a set that has no images yet, and from then on it is the run's recover.batch_size, in recipe.toml and in the
manifest. Every other process, and every later one, takes it from there.
"""

from __future__ import annotations

import itertools

import torch

from ..data.jobs import jobs, kept_batch_size, with_batch_size
from ..recipe.recipe import Recipe
from ..recipe.recover import Recover
from ..recover.schedule import turns
from ..run import Run
from ..sets.condensed import shard_path
from ..sets.imported import read_origin
from ..words import bytes_in_words
from ..workers.work import Items, draw
from . import stand_ins
from .memory import Footprint, meter, usable_bytes


def has_step(recipe: Recipe) -> bool:
    """Whether the memory of recover depends on the size of its jobs: all their images go through the teachers."""
    return recipe.recover.objective == "statistics" and recipe.recover.iterations > 0


def recover_footprint(recipe: Recipe, num_classes: int, device: torch.device) -> Footprint:
    """Bytes of a job's step, its teachers included, from steps of two and four images with untrained teachers."""
    job = jobs(with_batch_size(recipe, recipe.recover.batch_size or Recover.batch_size), num_classes)[0]
    with meter(device) as count:
        teachers = [stand_ins.teacher(recipe, name, num_classes, device) for name in stand_ins.matched(recipe)]

        def bytes_at(num_images: int) -> int:
            step = stand_ins.recover_step(recipe, stand_ins.smaller(job, num_images, num_classes), teachers, device)
            count.restart()
            for turn, canvas in itertools.product(turns(recipe, len(teachers), job), step.canvases.values()):
                step.step.zero_()
                step(turn, canvas)
            return count.peak

        return Footprint.of(bytes_at)


def largest_batch(recipe: Recipe, num_classes: int, footprint: Footprint, free: int) -> int:
    """The recover.batch_size of the largest jobs that fit, all of them of about the same size.

    Raises ValueError if not even a job of one class does.
    """
    slots, units = min(recipe.recover.slots_per_job or recipe.ipc, recipe.ipc), num_classes
    if recipe.recover.split_classes:
        slots, units = 1, num_classes * recipe.ipc
    most = footprint.largest(free) // slots
    if most < 1:
        raise ValueError(_refusal(recipe, slots, footprint, free))
    num_groups = -(-units // min(most, units))
    return slots * -(-units // num_groups)


def check_fits(recipe: Recipe, num_classes: int, footprint: Footprint, free: int) -> None:
    """Raises ValueError if the recipe's largest job does not fit into `free` bytes, and names what would."""
    largest = max(jobs(recipe, num_classes), key=lambda job: job.num_images)
    if largest.num_images > footprint.largest(free):
        raise ValueError(_refusal(recipe, largest.num_images, footprint, free))


def _refusal(recipe: Recipe, num_images: int, footprint: Footprint, free: int) -> str:
    fits, side = footprint.largest(free), recipe.dataset.image_size
    advice = "not even one image does"
    if fits:
        advice = f"the largest job that would has {fits} images: --recover.batch-size {fits}"
        if recipe.recover.classes_per_job:
            advice += " and --recover.classes-per-job 0"
    return (
        f"a job of {num_images} images of {side} pixels needs {bytes_in_words(footprint.at(num_images))}, which do "
        f"not fit in the {bytes_in_words(free)} that it may take; {advice}"
    )


def settle(run: Run) -> None:
    """Before a run's recover does anything: chooses recover.batch_size if it is 0, and refuses jobs that do not fit.

    One process chooses, and the others find what it has written. Raises ValueError that names the largest job that
    fits.
    """
    recipe, num_classes = run.recipe, len(run.real.classes)
    if recipe.recover.batch_size:
        folder = run.out / "condensed"
        is_finished = all(shard_path(folder, job.index).exists() for job in jobs(recipe, num_classes))
        if has_step(recipe) and not is_finished and read_origin(folder) is None:
            free, footprint = usable_bytes(run.device), recover_footprint(recipe, num_classes, run.device)
            check_fits(recipe, num_classes, footprint, free)
        return
    sizes = Items("batch-size", run.out, [0], lambda _: kept_batch_size(run.out, recipe) > 0)
    for _ in draw(sizes):
        if not has_step(recipe):
            raise ValueError("recover.batch_size 0 needs recover.objective statistics and recover.iterations above 0")
        free, footprint = usable_bytes(run.device), recover_footprint(recipe, num_classes, run.device)
        run.recipe = with_batch_size(recipe, largest_batch(recipe, num_classes, footprint, free))
        size = jobs(run.recipe, num_classes)[0].num_images
        run.log.say(
            f"recover: recover.batch_size is {run.recipe.recover.batch_size} from now on: a job of {size} images "
            f"needs {bytes_in_words(footprint.at(size))} of the {bytes_in_words(free)} that it may take"
        )
        run.record()
    run.recipe = with_batch_size(recipe, kept_batch_size(run.out, recipe))
