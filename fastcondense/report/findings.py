"""What a run has left so far, read for its report. What a stage that has not run would have left is empty."""

from __future__ import annotations

import copy
import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .. import vision
from ..data.real import squares
from ..log import read_events
from ..recipe.evaluation import PARTS, with_evaluation
from ..records import Environment, Kind, Origin, Replay, Result, read_checked, read_manifest
from ..recover.stage import made_jobs
from ..rng import Stream
from ..run import Run
from ..sets.condensed import read_present, read_record, read_seconds, shard_path
from ..sets.imported import read_origin
from ..sets.loss_bands import LossBand, read_loss_band
from ..sets.record import LayerLosses, Snapshots
from ..sets.results import read_results
from ..student_records import RankedScores, SizeCurve
from ..students.arms import CONDENSED, Arm, arms
from ..students.costs import views_an_epoch_of
from ..students.kept import Student, read_student, seen_otherwise, student_folder
from ..teachers.kept import read_teacher, teacher_path
from . import plots
from .html import short
from .report import changes_in_words

CLASSES, SLOTS = 20, 20
"""The first classes and slots, whose images are read."""
REAL = 5
"""Real images a class that are shown."""
_MOST, _LONGEST = 200, 10_000
"""Commands and stages of a log that are shown, and letters of a command: nobody writes more by hand."""


@dataclass(frozen=True)
class TeacherFile:
    """A finished teacher: its name, the hash of its weights, top-1 in per cent, bytes on disk, and seconds."""

    name: str
    sha256: str
    top1: float
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Findings:
    """All that the report shows, but what it computes."""

    run: Run
    titles: tuple[str, ...]
    """Names of the classes, for people."""
    environment: Environment
    dates: str
    """When the first and the last thing was made; empty for nothing."""
    teachers: list[TeacherFile]
    images: dict[tuple[int, int], Tensor]
    """Finished images of the first classes and slots, uint8 [3, S, S] by class and slot."""
    num_jobs: int
    num_finished: int
    num_images: int
    """Images in all finished jobs."""
    losses: LossBand | None
    """Losses of all finished jobs that have any."""
    snapshots: Snapshots | None
    layers: list[LayerLosses]
    """Losses of the layers of each teacher: the mean over all jobs."""
    recover_seconds: float
    shard_bytes: int
    replay: Replay | None
    origin: Origin | None
    """Where the images are imported from, if they are."""
    real: dict[int, Tensor]
    """Random training images of the classes that `images` shows, uint8 [n, 3, S, S]."""
    commands: list[str]
    """What launches were started with, but for reports; each once, the first first."""
    students: dict[str, list[Student]]
    """Finished ones of each arm, as the run's own recipe trains them."""
    others: dict[str, list[Student]]
    """Those on the condensed images that were trained and evaluated with other settings, by these in words."""
    views: dict[str, int]
    """Views of an epoch of each arm, and of each of the others."""
    results: list[Result]
    """All evaluations of the images; the run's own, if there is one, comes first."""
    sizes: SizeCurve | None
    ranking: RankedScores | None
    hours: dict[str, tuple[float, str]] = field(default_factory=dict)
    """The cost of each stage in all launches, as the log tells: workers times hours, and what these are called."""

    @property
    def result(self) -> Result | None:
        """The run's own evaluation, or another if that is missing."""
        return self.results[0] if self.results else None

    @property
    def has_other_scores(self) -> bool:
        """Whether the result is that of other settings than the run's own."""
        return self.result is not None and self.result["recipe_sha256"] != self.run.recipe.sha256()


def read_findings(run: Run) -> Findings:
    """Reads the folder of the run; nothing is computed, and nothing has to be there."""
    recipe, folder, classes = run.recipe, run.out / "condensed", run.real.classes
    everything = [job for job in made_jobs(run) if job.first_slot < recipe.ipc]
    images, finished = read_present(folder, everything, CLASSES, min(SLOTS, recipe.ipc))
    paths = [shard_path(folder, job.index) for job in finished]
    snapshots, means = [], LayerMeans()
    for job in finished:
        record = read_record(folder, job.index)
        means.add(record.layers)
        snapshots += [record.snapshots] if record.snapshots is not None else []
    students, results = {arm.name: _finished(run, arm) for arm in arms(run)}, read_results(run.out, recipe)
    others = _others(run, results)
    views = {arm.name: views_an_epoch_of(run, arm) for arm in arms(run)}
    return Findings(
        run=run,
        titles=class_titles(classes),
        environment=_optional(run.out / "environment.json", Environment) or {},
        dates=_dates(run.out / "log.jsonl"),
        teachers=[
            _teacher(path, name) for name in recipe.squeeze.teachers if (path := teacher_path(run.out, name)).exists()
        ],
        images=images,
        num_jobs=len(everything),
        num_finished=len(finished),
        num_images=sum(job.num_images for job in finished),
        losses=read_loss_band(paths, plots.POINTS),
        snapshots=_all_snapshots(snapshots),
        layers=means.tables(),
        recover_seconds=sum(map(read_seconds, paths)),
        shard_bytes=sum(path.stat().st_size for path in paths),
        replay=read_manifest(manifest).get("replay") if (manifest := folder / "manifest.json").exists() else None,
        real={label: real_images(run, label, REAL) for label in sorted({label for label, _ in images})},
        commands=commands_of(run.out / "log.jsonl"),
        students=students,
        others={name: some for name, (some, _) in others.items()},
        views=views | {name: count for name, (_, count) in others.items()},
        origin=read_origin(folder),
        results=results,
        sizes=_optional(run.out / "curve.json", SizeCurve),
        ranking=_optional(run.out / "ranking.json", RankedScores),
        hours=hours_of(run.out / "log.jsonl"),
    )


def _finished(run: Run, arm: Arm) -> list[Student]:
    folders = {number: student_folder(run, arm, number) for number in range(run.recipe.train.seeds)}
    numbers = [number for number, folder in folders.items() if (folder / "student.json").exists()]
    return [read_student(run, arm, number) for number in numbers if not seen_otherwise(run, arm, folders[number])]


def _others(run: Run, results: Sequence[Result]) -> dict[str, tuple[list[Student], int]]:
    """Students of the evaluations that are not the run's own, which the files of foreign ones may lack, and views of an
    epoch of theirs.
    """
    found: dict[str, tuple[list[Student], int]] = {}
    for result in results:
        if result["recipe_sha256"] == run.recipe.sha256():
            continue
        changes = changes_in_words(result["settings"], run.recipe.parts(*PARTS))
        name = f"{short(result['student'])}, {result['epochs']} epochs" + f", {changes}" * bool(changes)
        other = copy.copy(run)
        other.recipe = with_evaluation(run.recipe, result["settings"])
        before = found.get(name, ([], 0))[0]
        found[name] = [*before, *_finished(other, CONDENSED)], views_an_epoch_of(other, CONDENSED)
    return {name: of for name, of in found.items() if of[0]}


def real_images(run: Run, label: int, count: int) -> Tensor:
    """Up to so many random training images of a class that can be read: uint8 [n, 3, S, S]."""
    members = run.real.train.of_class(label)
    order = members[Stream(run.recipe.seed, "report/real").permutation(len(members), label)]
    return squares(run.real.train.take(order[:count]), run.recipe.dataset, run.device)[0]


def commands_of(log: Path) -> list[str]:
    """Commands of the launches that a log tells of, but for those that only look."""
    found: dict[str, None] = {}
    for entry in read_events(log, ("start",)):
        if (text := entry["command"]) and not text.startswith("fastcondense inspect ") and len(found) < _MOST:
            found[text[:_LONGEST]] = None
    return list(found)


def _optional(path: Path, kind: type[Kind]) -> Kind | None:
    return read_checked(path, kind) if path.exists() else None


def class_titles(classes: Sequence[str]) -> tuple[str, ...]:
    """Class names for people: ImageNet's wnids in words, all others as they are."""
    if not all(re.fullmatch(r"n\d{8}", name) for name in classes):
        return tuple(classes)
    info = vision.timm.data.ImageNetInfo()
    known = set(info.label_names())
    return tuple(info.label_name_to_description(name).partition(",")[0] if name in known else name for name in classes)


class LayerMeans:
    """One table a teacher: the mean of all that jobs have of it; teachers in their order. Tables are not kept."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, tuple[str, ...], int], tuple[int, Tensor, Tensor]] = {}

    def add(self, tables: Sequence[LayerLosses]) -> None:
        """Counts the tables of a job in."""
        for table in tables:
            key, losses = (table.teacher, table.names, len(table.losses)), table.losses.double()
            count, iterations, total = self.sums.get(key, (0, table.iterations, torch.zeros_like(losses)))
            self.sums[key] = count + 1, iterations, total + losses

    def tables(self) -> list[LayerLosses]:
        return [
            LayerLosses(teacher, names, iterations, (total / count).float())
            for (teacher, names, _), (count, iterations, total) in self.sums.items()
        ]


def _all_snapshots(some: Sequence[Snapshots]) -> Snapshots | None:
    """The snapshots of all jobs, by class."""
    some = [
        one
        for one in some
        if torch.equal(one.iterations, some[0].iterations) and one.images.shape[2:] == some[0].images.shape[2:]
    ]
    if not some:
        return None
    classes = torch.cat([one.classes for one in some])
    order = classes.argsort()
    return Snapshots(torch.cat([one.images for one in some], 1)[:, order], classes[order], some[0].iterations)


def _teacher(path: Path, name: str) -> TeacherFile:
    kept = read_teacher(path)
    return TeacherFile(name, kept["sha256"], kept["top1"], path.stat().st_size, kept["seconds"])


def hours_of(log: Path) -> dict[str, tuple[float, str]]:
    """Workers times hours of each stage but reports, all times that it ran added up, and what they are called."""
    found: dict[str, tuple[float, str]] = {}
    for entry in read_events(log, ("cost",)):
        is_known = entry["stage"] in found or len(found) < _MOST
        if is_known and entry["stage"] not in ("inspect", "run"):  # the report itself
            before = found.get(entry["stage"], (0.0, ""))[0]
            found[entry["stage"]] = before + entry["hours"], entry["unit"]
    return found


def _dates(log: Path) -> str:
    """UTC, by the minute; events that make nothing do not count."""
    times = [entry["time"] for entry in read_events(log, ("teacher", "job", "epoch", "result"))]
    times = [time for time in times if 0 <= time < 1e11]  # others have no date
    if not times:
        return ""
    first, last = (datetime.datetime.fromtimestamp(time, datetime.UTC) for time in (min(times), max(times)))
    end = f"{last:%H:%M}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M}"
    return f"{first:%Y-%m-%d %H:%M} to {end} UTC"
