"""The stage that makes a run's condensed images, job by job; what is finished stays."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import replace

from ..data.jobs import Job, jobs
from ..devices import stopwatch, versions
from ..files import write_json
from ..log import Log
from ..networks.precision import one_thread
from ..records import read_manifest
from ..run import Run
from ..sets.condensed import CondensedSet, identity_of, open_folder, read_set, shard_path, write_shard
from ..sets.imported import check_order, read_imported, read_origin
from ..statistics import pruning, targets
from ..statistics.class_directions import class_directions
from ..statistics.difficulty import grade
from ..teachers.kept import chosen
from ..teachers.teacher import Teacher
from ..tensor_files import read_metadata, read_tensors
from ..workers.distributed import rank
from ..workers.work import Items, shared
from . import initial
from .anchors import RetrievedAnchors
from .background import Writer, beside
from .by_features import ByFeatures
from .by_gradients import ByGradients
from .by_means import ByMeans
from .by_statistics import ByStatistics
from .engine import Recovered, RecoverJob, kept_as_begun
from .feature_targets import ClassDirections, backbone_of
from .formation import has_scattered_subsets
from .head_gradients import HeadGradients, RealViews
from .mosaic import Mosaics
from .unfinished import Unfinished


def recover(run: Run, teachers: list[Teacher]) -> None:
    """Makes the condensed images, if none are imported; finished jobs are kept, unreadable ones are made again.

    All workers of a launch call this, and each returns when all jobs are finished.
    """
    recipe, identity = run.recipe, run.identity("recover")
    folder = run.out / "condensed"
    if (origin := read_origin(folder)) is not None:
        run.log.say(f"recover: {condensed_set(run).num_images} images are imported from {origin['path']}")
        return
    manifest = {
        "classes": list(run.real.classes),
        "recipe": identity,
        "teachers": {teacher.name: teacher.identity for teacher in teachers},
    }
    begun_with = open_folder(folder, manifest, versions())
    made = Made(run, identity_of(manifest))
    everything = jobs(recipe, len(run.real.classes))
    if rank() == 0:
        made.drop_damaged(everything)
    finished = sum(map(made.is_finished, everything))
    if finished:
        run.log.say(f"recover: {finished} of {len(everything)} jobs are finished already")
    num_images = sum(job.num_images for job in everything)
    run.log.event("recover", jobs=len(everything), images=num_images, finished=finished)
    if finished < len(everything):
        _check_versions(run, begun_with)
        with one_thread(run.device) if recipe.recover.reproducible else contextlib.nullcontext():
            _recover(run, teachers, made, everything)
    _note_size(run)


def _check_versions(run: Run, begun_with: dict[str, str]) -> None:
    """Raises ValueError if other versions of what decides the bits have begun the set, unless they may be mixed."""
    now = versions()
    for package in ("torch", "timm", "fastcondense"):
        was, is_now = begun_with.get(package), now.get(package)
        if was is not None and was != is_now:
            text = f"the images in {run.out} were begun with {package} {was}, and this is {is_now}"
            if not run.is_mixed:
                raise ValueError(f"{text}: more of them may differ in bits; --mixed-versions adds them all the same")
            run.log.say(f"recover: {text}; --mixed-versions")


def _recover(run: Run, teachers: list[Teacher], made: Made, everything: list[Job]) -> None:
    """Makes this worker's part of the jobs, and waits for the others'."""
    folder, recover_job = made.folder, _recoverer(run, teachers)
    # the largest first, so that no worker is left with one at the end
    everything = sorted(everything, key=lambda job: (-job.num_images, job.index))
    with Writer() as writer:
        work = Items(
            "jobs", folder, everything, made.is_finished, lambda job: shard_path(folder, job.index).name, writer.settle
        )
        for job, ahead in shared(run.log, "recover", work):
            show = functools.partial(_show, run.log, job.index)
            unfinished = Unfinished(folder, job, made.identity, run.log.say, show)
            run.log.event("working", job=job.index)
            with stopwatch(run.device) as watch:
                recovered = recover_job(job, unfinished, ahead)
            writer(functools.partial(made.write, job, recovered, watch.seconds, unfinished))


def _show(log: Log, job: int, done: int, count: int) -> None:
    """Tells how far a job is, here and to whoever asks for the run's status."""
    log.event("working", job=job, iteration=done, iterations=count)
    log.within(done / count, f"recover: job {job} is at iteration {done} of {count}")


class Made:
    """The shards of a run. identity: of all that decides the images, but for the job."""

    def __init__(self, run: Run, identity: str):
        self.run, self.folder, self.identity = run, run.out / "condensed", identity

    def is_finished(self, job: Job) -> bool:
        """Whether a job's shard is there; a damaged one is removed. Raises ValueError for one of another recipe."""
        path = shard_path(self.folder, job.index)
        if not path.exists():
            return False
        try:
            kept = read_metadata(path)
        except ValueError as error:
            self.run.log.say(f"recover: {error}; the job is done again")
            path.unlink(missing_ok=True)
            return False
        if kept.get("recipe", self.identity) != self.identity:
            raise ValueError(
                f"{path} is of another recipe; move it away and the job is done again, or choose another --out"
            )
        if kept.get("cells", _cells(job)) != _cells(job):
            raise ValueError(f"{path} is of another job; move it away, and both are done again")
        return True

    def drop_damaged(self, everything: list[Job]) -> None:
        """Removes shards whose tensors are not those that were written, so that their jobs are done again."""
        for job in everything:
            path = shard_path(self.folder, job.index)
            try:
                if path.exists():
                    read_tensors(path)
            except ValueError as error:
                self.run.log.say(f"recover: {error}; the job is done again")
                path.unlink(missing_ok=True)

    def write(self, job: Job, recovered: Recovered, seconds: float, unfinished: Unfinished) -> None:
        """The shard of a job that took so many seconds; its unfinished state goes."""
        metadata = {"seconds": f"{seconds:.3f}", "images": "uint8 NCHW, RGB"}
        metadata |= {"recipe": self.identity, "cells": _cells(job)}
        images, losses, record = recovered
        if not self.is_finished(job):  # else this process was taken for lost, and another has done it meanwhile
            write_shard(self.folder, job, images, losses, metadata, record)
        unfinished.remove()
        total, entropy, matching = losses[-1].tolist() if len(losses) else (0.0, 0.0, 0.0)
        measured = {
            "images": job.num_images,
            "seconds": seconds,
            "images_per_second": job.num_images / seconds,
            "loss": total,
            "cross_entropy": entropy,
            "matching": matching,
        }
        self.run.log.event("job", index=job.index, slot=job.first_slot, **measured)


def _cells(job: Job) -> str:
    """The images that a job makes, in words, for a shard's metadata."""
    of = f"slots {job.first_slot} + {job.num_slots}, classes {job.first_class} + {job.num_classes}"
    return of if job.num_images == job.num_slots * job.num_classes else f"{of}, {job.num_images} from {job.begin}"


def _note_size(run: Run) -> None:
    """Writes into the manifest how many images a class the set has."""
    path = run.out / "condensed" / "manifest.json"
    manifest = read_manifest(path)
    if manifest.get("ipc", 0) < run.recipe.ipc:
        write_json(path, manifest | {"ipc": run.recipe.ipc})


def _recoverer(run: Run, teachers: list[Teacher]) -> RecoverJob:
    """The function that recovers the run's jobs, with all that it needs: initial images, target statistics, anchors."""
    recipe, recover = run.recipe, run.recipe.recover
    if recover.objective == "gradients":
        return ByGradients(run)
    if recover.objective == "means":
        return _by_means(run, chosen(teachers, recover.teachers))
    matched, images = chosen(teachers, recover.teachers), initial.make(run, teachers)
    if recover.objective == "features":
        assert isinstance(images, Mosaics)
        return ByFeatures(recipe, matched, run.device, *beside(run.device, images, images.anchors))
    if not recover.iterations:
        return kept_as_begun(recipe, run.device, images)
    targets.complete(run, matched)
    if "difficulty" in recover.targets:
        grade(run, matched)
    pruning.prune(run, matched)
    is_retrieved = recover.anchors == "retrieved"
    anchors = RetrievedAnchors(run, chosen(teachers, recover.initial.teachers)[0]) if is_retrieved else None
    (initial_of,) = beside(run.device, images)
    return ByStatistics(recipe, matched, run.device, initial_of, anchors)


def _by_means(run: Run, teachers: list[Teacher]) -> RecoverJob:
    """The function that recovers jobs for these teachers as frozen backbones."""
    recipe, device = run.recipe, run.device
    backbones = [backbone_of(teacher, recipe.recover.precision) for teacher in teachers]
    if recipe.recover.means.target == "gradient":
        real = RealViews(run)
        return ByMeans(recipe, backbones, device, lambda job: [HeadGradients(run, one, real, job) for one in backbones])
    wanted = class_directions(run, teachers)
    return ByMeans(recipe, backbones, device, lambda job: [ClassDirections(of, job, device) for of in wanted])


def made_jobs(run: Run) -> list[Job]:
    """The jobs of the set that lies in the run's folder, which may have more images a class than the recipe wants."""
    path = run.out / "condensed" / "manifest.json"
    made = read_manifest(path).get("ipc", 0) if path.exists() else 0
    return jobs(replace(run.recipe, ipc=max(made, run.recipe.ipc)), len(run.real.classes))


def condensed_set(run: Run) -> CondensedSet:
    """The finished condensed images of the run, the first `ipc` of each class.

    Imported ones are shown to the teachers that the run has by now. Raises ValueError if there are none, or if the
    first of a class are no set.
    """
    recipe, everything, classes = run.recipe, made_jobs(run), run.real.classes
    folder = run.out / "condensed"
    if not (folder / "manifest.json").is_file():
        raise ValueError(f"{run.out} has no condensed images; run recover first")
    if read_origin(folder) is not None:
        imported = read_imported(folder, recipe, classes)
        check_order(
            folder,
            imported,
            run.kept.get("teachers", []),
            recipe.squeeze.gate_images,
            recipe.dataset,
            run.device,
            run.log,
        )
    made = max(job.first_slot + job.num_slots for job in everything)
    if recipe.ipc < made and has_scattered_subsets(recipe):
        raise ValueError(
            f"{run.out} has {made} images a class, and its set of {recipe.ipc} is tiles of them all: "
            f"--ipc {made} --train.prefix {recipe.ipc}"
        )
    return read_set(folder, everything, recipe.ipc, classes)
