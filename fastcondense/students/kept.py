"""The folders of a run's students, and what they were trained on: images, data and teachers may have been replaced."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from ..files import slug, tree_sha256, write_json
from ..labels.fkd_files import is_fkd, sampled_sha256
from ..labels.stored_labels import stored_folder
from ..recipe.evaluation import student_parts
from ..recipe.recipe import sha256_of
from ..records import Sha256, read_checked
from ..recover.stage import made_jobs
from ..run import Run
from ..sets.imported import read_origin
from ..sets.stored_images import pixels_sha256, shard_path
from ..student_records import Choice, Confusion, Epoch, StudentFile, Trained, check_confusion
from ..teachers.kept import read_teacher, teacher_path
from ..user_functions import is_own, source_sha256
from ..workers.distributed import once
from .arms import Arm

_CHOICE, _SEEN = "choice.json", "seen.json"


@dataclass(frozen=True)
class Student:
    """One trained student: its folder and what was measured while it was trained."""

    folder: Path
    history: list[Epoch]
    seconds: Trained
    classes: Confusion | None = None
    """What `score.per_class` tells of its last evaluation; older students have none."""
    workers: int = 1
    """How many trained it together, each on a share of the batches."""

    @property
    def top1_best(self) -> float:
        return max(entry["top1"] for entry in self.history)


def student_folder(run: Run, arm: Arm, number: int) -> Path:
    """students/<student>-<hash of the settings>/<arm>/seed<number>; other settings get another folder.

    So do imported images. Of the best real subset: the folder of the rule's students that was chosen, once it is.
    """
    if arm.images == "best" and (choice := read_choice(run, arm)) is not None:
        arm = replace(arm, images=choice["chosen"])
    return arm_folder(run, arm) / f"seed{number}"


def read_choice(run: Run, arm: Arm) -> Choice | None:
    """Which rule chooses the best real subset of an arm, if that is known already."""
    path = arm_folder(run, arm) / _CHOICE
    return read_checked(path, Choice) if path.exists() else None


def write_choice(run: Run, arm: Arm, choice: Choice) -> None:
    """Writes down, once for all workers, what `read_choice` reads."""
    once(lambda: write_json(arm_folder(run, arm) / _CHOICE, choice))


def arm_folder(run: Run, arm: Arm) -> Path:
    """The folder of an arm's students, or of the choice of the best real subset."""
    recipe = run.recipe
    student = recipe.train.student.replace("/", "-").replace(":", "-")
    is_full = arm.images == "full" and arm.labels == "hard"
    seen = replace(recipe, labels=arm.seen(recipe.labels))
    made_by = sha256_of(student_parts(seen, is_full=is_full))[:8]
    origin = read_origin(run.out / "condensed")
    if arm.images == "condensed" and origin is not None:
        made_by += f"-{origin['sha256'][:8]}"
    for name, setting in ((arm.images, "evaluate.baselines"), (recipe.labels.source, "labels.source")):
        made_by += f"-{source_sha256(name, setting)[:8]}" if is_own(name) else ""
    return run.out / "students" / f"{student}-{made_by}" / slug(arm.name)


def begin(run: Run, arm: Arm, folder: Path) -> None:
    """Writes down, once for all workers, what is seen by what is going to be made in a folder; what was made there of
    something else goes, and that is said."""

    def write() -> None:
        if other := seen_otherwise(run, arm, folder):
            run.log.say(f"{folder} was made with {other} than there are now; it is made again")
            shutil.rmtree(folder)
        if not (folder / "student.json").exists():  # those of older versions have not said what they saw
            write_json(folder / _SEEN, _seen(run, arm))

    once(write)


def seen_otherwise(run: Run, arm: Arm, folder: Path) -> str:
    """What a student, or a choice, saw that is not there any more: "other condensed images"; empty if it is all there,
    as far as both are known."""
    path = folder / _SEEN
    if not path.exists():
        return ""
    before, now = read_checked(path, dict[str, Sha256]), _seen(run, arm)
    if not before:
        raise ValueError(f"{path} is damaged: it names nothing that was seen")
    return next((f"other {name}" for name in before if now.get(name, before[name]) != before[name]), "")


def _seen(run: Run, arm: Arm) -> dict[str, str]:
    """SHA-256 of all that decides an arm's students and their scores, beside the settings, by its name."""
    recipe, found = run.recipe, {"test images": run.real.test.digest}
    if arm.images != "condensed":
        found["training images"] = run.real.train.digest
    else:
        if pixels := _pixels(run):
            found["condensed images"] = pixels
        if recipe.labels.source == "stored" and is_fkd(folder := stored_folder(run)):
            found["stored labels"] = sampled_sha256(folder)
    no_teacher = recipe.needs_no_teacher or (arm.labels == "hard" and arm.images in ("random", "full"))
    for name in recipe.squeeze.teachers if recipe.train.frozen or not no_teacher else ():
        if (path := teacher_path(run.out, name)).exists():
            kept = read_teacher(path)
            answers = {key: kept.get(key) for key in ("sha256", "outputs", "pixel_statistics")}
            found[f"teacher {name}"] = tree_sha256(answers)
    return found


def _pixels(run: Run) -> str:
    """SHA-256 of the run's condensed images, which is kept for as long as nothing is written beside them; empty if one
    is missing."""
    folder, ipc = run.out / "condensed", run.recipe.ipc
    if not folder.is_dir():
        return ""
    as_of = folder, ipc, folder.stat().st_mtime_ns
    if run.kept.get("pixels", ("", ()))[1] != as_of:
        paths = [shard_path(folder, job.index) for job in made_jobs(run) if job.first_slot < ipc]
        run.kept["pixels"] = pixels_sha256(paths) if all(path.exists() for path in paths) else "", as_of
    found: str = run.kept["pixels"][0]
    return found


def read_student(run: Run, arm: Arm, number: int) -> Student:
    """A finished student. Raises ValueError if it is not finished, or was trained on what is not there any more."""
    folder = student_folder(run, arm, number)
    if not (folder / "student.json").exists():
        raise ValueError(f"{folder} holds no finished student; run train first")
    if other := seen_otherwise(run, arm, folder):
        raise ValueError(f"{folder} was trained with {other} than there are now; run train again")
    tree = read_checked(folder / "student.json", StudentFile)
    if (table := tree.get("classes")) is not None:
        check_confusion(table, len(run.real.classes), folder / "student.json")
    return Student(folder, tree["history"], tree["seconds"], table, tree.get("workers", 1))
