"""The stage that makes a run's condensed images, job by job; what is finished stays."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..files import read_json, read_tensors, write_json
from ..gradient.gradients import GradientRecoverer, unfinished_path
from ..jobs import Job, jobs
from ..run import Run
from ..sets.condensed import CondensedSet, digests, open_folder, read_running_means, read_set, shard_path, write_shard
from ..sets.imported import check_order, read_imported, read_origin
from ..statistics import pruning, targets
from ..teachers.squeeze import chosen, squeeze
from ..teachers.teacher import Teacher
from ..training.order import order_slots
from . import initial
from .features import FeatureRecoverer
from .mosaic import Mosaics
from .nested import FinishedSlots
from .recover import Recoverer, Sources


def recover(run: Run) -> None:
    """Makes the condensed images, if none are imported; finished jobs are kept, unreadable ones are made again."""
    recipe, teachers = run.recipe, squeeze(run)
    folder = run.out / "condensed"
    if (origin := read_origin(folder)) is not None:
        images = condensed_set(run).images
        run.log.say(f"recover: {images.shape[0] * images.shape[1]} images are imported from {origin['path']}")
        return
    manifest = {
        "classes": list(run.real.classes),
        "recipe": run.identity("recover"),
        "teachers": {teacher.name: teacher.sha256 for teacher in teachers},
    }
    open_folder(folder, manifest)
    everything = jobs(recipe, len(run.real.classes))
    todo = [job for job in everything if not _is_finished(run, job)]
    if len(todo) < len(everything):
        run.log.say(f"recover: {len(everything) - len(todo)} of {len(everything)} jobs are finished already")
    if not todo:
        _note_size(run)
        return
    recover_job = _recoverer(run, teachers)
    for job in run.log.track(todo, "recover"):
        carried = read_running_means(folder, job.index - 1) if recipe.recover.ema_carried and job.index else None
        with run.stopwatch() as watch:
            made = recover_job(job, carried)
        metadata = {"seconds": f"{watch.seconds:.3f}", "images": "uint8 NCHW, RGB"}
        write_shard(folder, job, made.images, made.losses, made.running_means, metadata, made.record)
        unfinished_path(folder, job.index).unlink(missing_ok=True)
        total, entropy, matching = made.losses[-1].tolist() if len(made.losses) else (0.0, 0.0, 0.0)
        run.log.event(
            "job",
            index=job.index,
            slot=job.first_slot,
            seconds=watch.seconds,
            loss=total,
            cross_entropy=entropy,
            matching=matching,
        )
    _note_size(run)


def _note_size(run: Run) -> None:
    """Writes into the manifest how many images a class the set has."""
    path = run.out / "condensed" / "manifest.json"
    manifest = read_json(path)
    if manifest.get("ipc", 0) < run.recipe.ipc:
        write_json(path, manifest | {"ipc": run.recipe.ipc})


def _recoverer(run: Run, teachers: list[Teacher]) -> Recoverer | FeatureRecoverer | GradientRecoverer:
    """What recovers the run's jobs, with all that it needs: initial images, target statistics, anchors."""
    recipe, recover = run.recipe, run.recipe.recover
    if recover.objective == "gradients":
        return GradientRecoverer(run)
    matched, images = chosen(teachers, recover.teachers), initial.make(run, teachers)
    if recover.objective == "features":
        assert isinstance(images, Mosaics)
        return FeatureRecoverer(recipe, matched, run.device, images, images.anchors)
    if recover.iterations:
        targets.complete(run, matched)
        pruning.prune(run, matched)
    local = targets.local_images(run) if "local" in recover.targets else None
    unions = None
    if recover.nested.mode == "sequential":
        unions = FinishedSlots(recover, matched, run.normalize, lambda job: _before(run, job))
    return Recoverer(recipe, matched, run.device, Sources(images, local, unions))


def _before(run: Run, job: Job) -> list[tuple[Job, Tensor]]:
    """The finished jobs of the slots before that of `job`, and their images."""
    cells = [cell for cell in jobs(run.recipe, len(run.real.classes)) if cell.first_slot < job.first_slot]
    return [(cell, read_tensors(shard_path(run.out / "condensed", cell.index))[0]["images"]) for cell in cells]


def _is_finished(run: Run, job: Job) -> bool:
    path = shard_path(run.out / "condensed", job.index)
    if not path.exists():
        return False
    try:
        read_tensors(path)
    except ValueError as error:
        run.log.say(f"recover: {error}; the job is done again")
        return False
    return True


def made_jobs(run: Run) -> list[Job]:
    """The jobs of the set that lies in the run's folder, which may have more images a class than the recipe wants."""
    path = run.out / "condensed" / "manifest.json"
    made = read_json(path).get("ipc", 0) if path.exists() else 0
    return jobs(replace(run.recipe, ipc=max(made, run.recipe.ipc)), len(run.real.classes))


def condensed_set(run: Run) -> CondensedSet:
    """The finished condensed images of the run, the first `ipc` of each class.

    Imported ones are shown to the teachers that the run has by now.
    """
    recipe, everything, classes = run.recipe, made_jobs(run), run.real.classes
    folder = run.out / "condensed"
    if read_origin(folder) is not None:
        imported = read_imported(folder, recipe, classes)
        check_order(folder, imported, run.teachers, recipe.squeeze.gate_images, recipe.dataset, run.device, run.log)
    if recipe.train.order == "slots":
        return read_set(folder, everything, recipe.ipc, classes)
    whole = read_set(folder, everything, max(job.first_slot + job.num_slots for job in everything), classes)
    return whole.ordered(_ranks(run, whole)).first(recipe.ipc)


def _ranks(run: Run, whole: CondensedSet) -> Tensor:
    """The order of each class's slots that matches the targets best, found once for the images of a set."""
    path, images = run.out / "condensed" / "ranks.json", digests(whole)
    kept = read_json(path) if path.exists() else {}
    if kept.get("images") == images:
        return torch.tensor(kept["ranks"])
    teachers = chosen(squeeze(run), run.recipe.recover.teachers)
    targets.complete(run, teachers)
    ranks = order_slots(whole, teachers, run.recipe.recover, run.normalize)
    write_json(path, {"images": images, "ranks": ranks.tolist()})
    return ranks
