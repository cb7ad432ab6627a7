"""The stage that scores a run's students beside their baselines, and writes result.json."""

from __future__ import annotations

import statistics
from typing import Any

from . import report
from .condensed import shard_path
from .files import read_tensors, write_json
from .jobs import jobs
from .run import Run
from .squeeze import teacher_bytes, teacher_seconds
from .students import CONDENSED, arms, last_score, read_student


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
        "ipc": recipe.shown_ipc,
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
