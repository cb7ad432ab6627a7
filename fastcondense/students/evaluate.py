"""The stage that puts a run's students beside their baselines, as they were scored, and writes a file of results/."""

from __future__ import annotations

from typing import Any

from ..devices import versions
from ..labels.stored_labels import stored_bytes
from ..recipe.evaluation import PARTS
from ..recipe.recipe import sha256_of
from ..records import spread
from ..recover.stage import made_jobs
from ..run import Run
from ..sets.condensed import read_seconds, shard_path
from ..sets.imported import read_origin
from ..sets.results import keep
from ..teachers.kept import teacher_bytes, teacher_seconds
from ..user_functions import is_own, source_sha256
from ..workers.distributed import once
from .arms import CONDENSED, Arm, arms
from .costs import needed_bytes, student_views
from .kept import read_choice, read_student


def evaluate(run: Run) -> dict[str, Any]:
    """Gathers what all students scored; writes the result of these settings and result.json, and returns it."""
    recipe, folder = run.recipe, run.out / "condensed"
    by_arm = {arm.name: scores(run, arm) for arm in arms(run)}
    job_paths = [shard_path(folder, job.index) for job in made_jobs(run) if job.first_slot < recipe.ipc]
    condensed = by_arm.pop(CONDENSED.name)
    seconds = condensed.pop("seconds")
    origin = read_origin(folder)
    result = {
        "recipe": recipe.name,
        "recipe_sha256": recipe.sha256(),
        "settings": recipe.parts(*PARTS),
        "dataset": recipe.dataset.name,
        "method": recipe.method,
        "ipc": recipe.shown_ipc,
        "student": recipe.train.student,
        "teachers": list(recipe.squeeze.teachers),
        "epochs": recipe.train.epochs,
        "seed": recipe.seed,
        "seeds": recipe.train.seeds,
        "labels": recipe.labels.source,
        "test_images": len(run.real.test),
        **condensed,
        "baselines": by_arm,
        "bytes": {
            "images": len(run.real.classes) * recipe.shown_ipc * 3 * recipe.dataset.image_size**2,
            "labels": stored_bytes(run),
            "teachers": teacher_bytes(run, recipe.squeeze.teachers),
        },
        "seconds": {
            "squeeze": teacher_seconds(run),
            "recover": sum(map(read_seconds, job_paths)),
            "train": seconds["train"],
            "evaluate": seconds["evaluate"],
        },
        "versions": versions(),
        **({} if origin is None else {"origin": {key: origin[key] for key in ("path", "layout", "sha256")}}),
    }
    named = [(name, "evaluate.baselines") for name in recipe.evaluate.baselines]
    named += [(recipe.labels.source, "labels.source")]
    sources = {name: source_sha256(name, setting) for name, setting in named if is_own(name)}
    decided_by = sha256_of({"recipe": recipe.sha256(), "sources": sources})
    once(lambda: keep(run.out, "result", recipe, result, decided_by))
    run.log.event("result", **{key: result[key] for key in ("top1_last", "top1_best", "baselines")})
    return result


def scores(run: Run, arm: Arm) -> dict[str, Any]:
    """Mean and deviation over seeds of an arm's students, and what they cost: views, bytes, seconds, and workers."""
    students = [read_student(run, arm, number) for number in range(run.recipe.train.seeds)]
    last = [student.history[-1] for student in students]
    choice = read_choice(run, arm) if arm.images == "best" else None
    return {
        "top1_last": spread([entry["top1"] for entry in last]),
        "top1_best": spread([student.top1_best for student in students]),
        "top5_last": spread([entry["top5"] for entry in last]),
        "views": student_views(run, arm),
        "needs": needed_bytes(run, arm),
        "seconds": {key: sum(student.seconds[key] for student in students) for key in ("train", "evaluate")},
        "workers": sorted({student.workers for student in students}),
        **({} if choice is None else {"chosen": choice["chosen"]}),
    }
