"""The stages behind the command line, each resumable, and all in a row."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch

from . import initial, pruning, report, targets
from .condensed import (
    CondensedSet,
    open_folder,
    read_losses,
    read_running_means,
    read_set,
    shard_path,
    write_shard,
)
from .features import FeatureRecoverer
from .files import read_json, read_tensors, write_json
from .jobs import Job, jobs
from .labels import TeacherLabels
from .mosaic import Mosaics
from .real import split_batches
from .recover import Recoverer, Sources
from .run import Run
from .squeeze import chosen, squeeze, teacher_bytes, teacher_seconds
from .students import CONDENSED, arms, last_score, read_student, train_arm
from .teacher import Teacher
from .views import ReplayedViews, Span

PROBES = 256


def recover(run: Run) -> None:
    """Makes the condensed images; finished jobs are kept, unreadable ones are made again."""
    recipe, teachers = run.recipe, squeeze(run)
    folder = run.out / "condensed"
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
        return
    recover_job = _recoverer(run, teachers)
    for job in run.log.track(todo, "recover"):
        carried = read_running_means(folder, job.index - 1) if recipe.recover.ema_carried and job.index else None
        with run.stopwatch() as watch:
            made = recover_job(job, carried)
        metadata = {"seconds": f"{watch.seconds:.3f}", "images": "uint8 NCHW, RGB"}
        write_shard(folder, job, made.images, made.losses, made.running_means, metadata)
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


def _recoverer(run: Run, teachers: list[Teacher]) -> Recoverer | FeatureRecoverer:
    """What recovers the run's jobs, with all that it needs: initial images, target statistics, anchors."""
    recipe, recover = run.recipe, run.recipe.recover
    matched, images = chosen(teachers, recover.teachers), initial.make(run, teachers)
    if recover.objective == "features":
        assert isinstance(images, Mosaics)
        return FeatureRecoverer(recipe, matched, run.device, images, images.anchors)
    if recover.iterations:
        targets.complete(run, matched)
        pruning.prune(run, matched)
    local = targets.local_images(run) if "local" in recover.targets else None
    return Recoverer(recipe, matched, run.device, Sources(images, local))


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


def condensed_set(run: Run) -> CondensedSet:
    """The finished condensed images of the run."""
    num_jobs = len(jobs(run.recipe, len(run.real.classes)))
    return read_set(run.out / "condensed", num_jobs, run.recipe.ipc, run.real.classes)


def relabel(run: Run) -> dict[str, Any]:
    """Writes what replays the labels into the manifest, instead of labels: settings, seeds, teachers, a fingerprint.

    The fingerprint is the five largest logits of up to 256 unmixed views of epoch 0, labelled in batches of 64: they
    tell another machine whether it computes the same labels. Returns the replay specification.
    """
    teachers, condensed = chosen(squeeze(run), run.recipe.labels.teachers), condensed_set(run)
    pixels, labels = condensed.flat()
    views = ReplayedViews(
        pixels.to(run.device), labels.to(run.device), run.recipe.labels, run.normalize, run.recipe.seed
    )
    ids = views.order_stream.permutation(len(labels), 0)[:PROBES]
    source, parts = TeacherLabels(teachers, run.recipe.labels, run.recipe.seed), []
    for positions in split_batches(np.arange(len(ids)), 64):
        span = Span(0, int(positions[0]), int(positions[-1]) + 1)
        parts.append(source.logits(views.crops(0, ids[positions]), span).mean(0))
    logits = torch.cat(parts).cpu()
    values, indices = logits.topk(min(5, logits.shape[1]), dim=1)
    agreement = 100 * float((indices[:, 0] == labels[torch.from_numpy(ids)]).float().mean())
    recipe = run.recipe
    replay = {
        "generator": "Philox-4x32-10",
        "seeds": [recipe.seed + number for number in range(recipe.train.seeds)],
        "views": recipe.parts("labels")["labels"],
        "epochs": recipe.train.epochs,
        "batch_size": recipe.train.batch_size,
        "ipc": recipe.ipc,
        "crop": "bilinear, antialiased, float32, from uint8",
        "teachers": {teacher.name: teacher.sha256 for teacher in teachers},
        "fingerprint": {
            "ids": ids.tolist(),
            "classes": indices.tolist(),
            "logits": [[round(value, 4) for value in row] for row in values.tolist()],
        },
    }
    path = run.out / "condensed" / "manifest.json"
    write_json(path, read_json(path) | {"replay": replay})
    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    run.log.say(
        f"relabel: 0 bytes of labels; on {len(ids)} views of epoch 0 the teachers name the image's class in "
        f"{agreement:.1f} %, mean entropy {float(entropy):.2f} nats"
    )
    return replay


def train(run: Run) -> None:
    """Trains all students: on the condensed set and on each baseline."""
    teachers, condensed = chosen(squeeze(run), run.recipe.labels.teachers), condensed_set(run)
    for arm in arms(run):
        train_arm(run, arm, condensed, teachers)


def evaluate(run: Run) -> dict[str, Any]:
    """Scores all students, prints the table and writes result.json; returns what is written."""
    recipe, folder = run.recipe, run.out / "condensed"
    scores = {arm: _scores(run, arm) for arm in arms(run)}
    job_paths = [shard_path(folder, job.index) for job in jobs(recipe, len(run.real.classes))]
    condensed = scores.pop(CONDENSED)
    seconds = condensed.pop("seconds")
    result = {
        "recipe": recipe.name,
        "recipe_sha256": recipe.sha256(),
        "dataset": recipe.dataset.name,
        "method": recipe.method,
        "ipc": recipe.ipc,
        "student": recipe.train.student,
        "teachers": list(recipe.squeeze.teachers),
        "epochs": recipe.train.epochs,
        "seed": recipe.seed,
        "seeds": recipe.train.seeds,
        "test_images": len(run.real.test),
        **condensed,
        "baselines": scores,
        "bytes": {
            "images": sum(path.stat().st_size for path in job_paths),
            "labels": 0,
            "teachers": teacher_bytes(run),
        },
        "seconds": {
            "squeeze": teacher_seconds(run),
            "recover": sum(float(read_tensors(path)[1]["seconds"]) for path in job_paths),
            "train": seconds["train"],
            "evaluate": seconds["evaluate"],
        },
        "versions": run.versions(),
    }
    write_json(run.out / "result.json", result)
    run.log.event("result", **{key: result[key] for key in ("top1_last", "top1_best", "baselines")})
    run.log.console.print(report.honest_table(result))
    return result


def _scores(run: Run, arm: str) -> dict[str, Any]:
    students = [read_student(run, arm, number) for number in range(run.recipe.train.seeds)]
    last = [last_score(run, student) for student in students]

    def spread(values: list[float]) -> dict[str, float]:
        return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}

    return {
        "top1_last": spread([entry["top1"] for entry in last]),
        "top1_best": spread([student.top1_best for student in students]),
        "top5_last": spread([entry["top5"] for entry in last]),
        "seconds": {key: sum(student.seconds[key] for student in students) for key in ("train", "evaluate")},
    }


def inspect(run: Run) -> None:
    """Writes grid.png (images) and losses.png (curves) beside the condensed images."""
    condensed, folder = condensed_set(run), run.out / "condensed"
    report.image_grid(condensed, folder / "grid.png")
    losses = read_losses(folder, len(jobs(run.recipe, len(condensed.classes))))
    pictures = ["grid.png"]
    if losses.shape[1]:
        report.loss_curves(losses, folder / "losses.png")
        pictures.append("losses.png")
    for name in pictures:
        run.log.say(f"inspect: {folder / name}")


def everything(run: Run) -> None:
    """All stages in a row."""
    recover(run)
    relabel(run)
    inspect(run)
    train(run)
    evaluate(run)
