"""The stages of at_scale.py that ask networks: squeeze and statistics, mosaics, recover, labels and students.

Each runs in a process of its own, `python scale_runs.py NAME JSON`, and prints a line of JSON for each of its parts.
The teachers are untrained: what they cost is measured, and not what they know.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from scale_stages import Meter, print_line, tell, write_noise
from torch import nn

from fastcondense.data import datasets
from fastcondense.data.jobs import jobs
from fastcondense.data.splits import RealData, Split
from fastcondense.files import slug
from fastcondense.labels import relabel, resident
from fastcondense.labels.fkd import FKDViews, write_fkd
from fastcondense.labels.stored_labels import stored_bytes
from fastcondense.labels.views import ReplayedViews
from fastcondense.loaders.complete import check_files
from fastcondense.loaders.folder import FolderLoader
from fastcondense.log import Log, read_events
from fastcondense.networks import zoo
from fastcondense.plan.extent import extent
from fastcondense.plan.plan import PARTS, Plan
from fastcondense.plan.table import tables
from fastcondense.recipe.recipe import Recipe, load
from fastcondense.recover import initial
from fastcondense.recover.stage import condensed_set, recover
from fastcondense.report.page import write_report
from fastcondense.rng import Stream
from fastcondense.run import Run
from fastcondense.sets.condensed import read_set
from fastcondense.squeeze.stage import squeeze
from fastcondense.statistics.targets import complete
from fastcondense.students.arms import CONDENSED, Arm
from fastcondense.students.students import train_arm

TEACHERS = "zoo/convnet1", "zoo/convnet2"
POOLED = "scale_runs:pooled"
SIDE = 16
"""Pixels of all images that networks see, but for those of `pooled`."""
IMAGES, FEW = 50, 10
"""Training images a class that statistics are taken of."""
STATISTICS: tuple[Literal["bn", "conv", "patch"], ...] = ("bn", "conv", "patch")
TOP = 5
_BYTES = 2 + 2
"""Of a stored class and its logit."""
_EPOCH = "a student's epoch, streamed"


def pooled(num_classes: int) -> nn.Module:
    """A linear layer over 8 x 8 means of an image of any size: so small that loading and views are what takes time."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))


def _recipe(about: dict[str, Any], name: str, teachers: tuple[str, ...] = TEACHERS[:1], side: int = SIDE) -> Recipe:
    """The recipe `name` for images of `side` pixels, with untrained teachers, whose weights are written."""
    recipe, paths = load(name), []
    for teacher in teachers:
        path = Path(about["scratch"]) / f"{slug(teacher)}-{about['classes']}.pt"
        with Stream(0, "at-scale").torch_generator():
            torch.save(zoo.build(teacher, about["classes"]).state_dict(), path)
        paths.append(str(path))
    dataset = dataclasses.replace(recipe.dataset, image_size=side, resize=side, workers=1)
    made = dataclasses.replace(recipe.squeeze, teachers=teachers, weights=tuple(paths), gate_images=0)
    evaluate = dataclasses.replace(recipe.evaluate, baselines=())
    train = dataclasses.replace(recipe.train, student=teachers[0], epochs=1, seeds=1)
    return dataclasses.replace(recipe, dataset=dataset, squeeze=made, evaluate=evaluate, train=train)


def _opened(recipe: Recipe, about: dict[str, Any], name: str, images: int = 0) -> Run:
    """A run that has begun in a folder of its own, on the first images of each class; 0: all."""
    run = Run(recipe, Path(about["scratch"]) / f"{name}-{about['classes']}-{recipe.ipc}", Path(about["data"]))
    run.log = Log(is_silent=True)
    real = datasets.load(recipe.dataset, run.data)

    def first(split: Split, count: int) -> Split:
        return split.take(np.concatenate([split.of_class(label)[:count] for label in range(len(real.classes))]))

    if images:
        run.real = RealData(real.name, real.classes, first(real.train, images), first(real.test, 5))
    run.check()
    run.open()
    return run


# --- teachers and what they know of real images ----------------------------------------------------------------------


def _squeeze(about: dict[str, Any]) -> None:
    """Two teachers that match all kinds of statistics, of the whole set and of each class."""
    recipe = _recipe(about, "sre2l/imagenet1k-ipc10", TEACHERS)
    targets: dict[str, Any] = {"targets": ("global", "category"), "target_weights": (0.5, 0.5)}
    matched = dataclasses.replace(recipe.recover, statistics=STATISTICS, patch_size=4, **targets)
    recipe = dataclasses.replace(recipe, recover=matched)
    gated = dataclasses.replace(recipe, squeeze=dataclasses.replace(recipe.squeeze, gate_images=about["gate"]))
    refusing = _opened(gated, about, "gate", IMAGES)
    files = refusing.real.train.files
    tell("every file opened once, whether it is whole", lambda: check_files(files, 1, refusing.log.track))
    tell(f"the gate of a teacher, {about['gate']} images a class", lambda: _refused(refusing))
    for images, what in ((FEW, f"statistics for 2 teachers, {FEW} images a class"), (IMAGES, f"the same, {IMAGES}")):
        run = _opened(recipe, about, f"squeeze-{images}", images)
        teachers, reads = squeeze(run), [0]

        def counted(self: FolderLoader, sample: int, reads: list[int] = reads, read: Any = FolderLoader.read) -> Any:
            reads[0] += 1
            return read(self, sample)

        with mock.patch.object(FolderLoader, "read", counted):
            tell(what, lambda run=run, teachers=teachers: complete(run, teachers), files=len(run.real.train))
        if reads[0] != len(run.real.train):
            raise ValueError(f"{reads[0]} files were read for {len(run.real.train)} images")


def _refused(run: Run) -> None:
    """Raises ValueError if an untrained teacher passes the gate."""
    try:
        squeeze(run)
    except ValueError as error:
        if "chance" not in str(error):
            raise
        return
    raise ValueError("an untrained teacher has passed the gate")


# --- images ----------------------------------------------------------------------------------------------------------


def _mosaics(about: dict[str, Any]) -> None:
    """Mosaics of the crops that a teacher knows best: RDED's, but that an image may give two crops, as EDC's do."""
    recipe = _recipe(about, f"rded/imagenet1k-ipc{about['ipc']}")
    images = max(IMAGES, 2 * recipe.ipc)
    crops = dataclasses.replace(recipe.recover.initial, crops=2, candidates=images, one_per_image=images == IMAGES)
    recipe = dataclasses.replace(recipe, recover=dataclasses.replace(recipe.recover, initial=crops))
    run = _opened(recipe, about, "mosaics", images)
    teachers = squeeze(run)
    tell(f"crops ranked, 2 of each of {images} images a class", lambda: initial.make(run, teachers))
    _recovered(run, f"mosaics, {recipe.ipc} a class")


def _recover(about: dict[str, Any]) -> None:
    """SRe2L's images, one a class in each job, by few iterations."""
    recipe = _small(about)
    count = recipe.recover.iterations
    run = _opened(recipe, about, f"recover-{count}", IMAGES)
    _recovered(run, f"SRe2L's images, {count} iteration{'s' * (count > 1)}")


def _small(about: dict[str, Any]) -> Recipe:
    recipe = _recipe(about, f"sre2l/imagenet1k-ipc{about['ipc']}")
    made = dataclasses.replace(recipe.recover, iterations=about["iterations"], roll=(0, 2))
    return dataclasses.replace(recipe, recover=made)


def _recovered(run: Run, what: str) -> None:
    """Recovers the set; what goes beside the jobs themselves is told too, by the clock, as jobs are timed."""
    teachers, count = squeeze(run), len(jobs(run.recipe, len(run.real.classes)))

    def beside(seconds: float) -> dict[str, float]:
        assert run.log.path is not None
        own = sum(event["seconds"] for event in read_events(run.log.path, ("job",)))
        told = {"job_ms": 1e3 * own / count, "beside_ms": 1e3 * (seconds - own) / count}
        return {"a_class": run.recipe.ipc, "jobs": count} | {key: round(value, 2) for key, value in told.items()}

    meter = Meter()
    recover(run, teachers)
    meter.tell(what, beside)


def _workers(about: dict[str, Any]) -> None:
    """The set of one worker, and that of three, of which one is killed and another joins: bit for bit."""
    scratch, recipe = Path(about["scratch"]), _small(about)
    (scratch / "workers.toml").write_text(recipe.to_toml())
    command = [sys.executable, "-m", "fastcondense.cli", "recover", "--recipe", str(scratch / "workers.toml")]
    command += ["--data", str(_little_tested(about)), "--device", "cpu", "--out"]
    made, environment = jobs(recipe, about["classes"]), os.environ | {"FASTCONDENSE_PATIENCE": "5"}

    def worker(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, str(out)], env=environment, stdout=subprocess.DEVNULL)

    def until(out: Path, count: float) -> None:
        while sum(1 for _ in (out / "condensed").glob("shard-*")) < count:
            time.sleep(0.1)

    def ended(workers: list[subprocess.Popen[bytes]]) -> None:
        statuses = [one.wait() for one in workers]
        if any(statuses):
            raise ValueError("a worker has failed")

    def three(out: Path) -> None:
        first = worker(out)
        until(out, 1)  # the second and third help
        second, third = worker(out), worker(out)
        until(out, 0.4 * len(made))
        second.kill()
        second.wait()
        ended([first, third, worker(out)])

    def digest(out: Path) -> str:
        names = tuple(map(str, range(about["classes"])))
        return read_set(out / "condensed", made, about["ipc"], names).sha256

    one, many = scratch / "one", scratch / "many"
    _of_children("SRe2L's images by one worker", lambda: ended([worker(one)]), len(made))
    _of_children("by 3 workers, of which one is killed, and one that joins", lambda: three(many), len(made))
    if digest(one) != digest(many):
        raise ValueError(f"{many} has other images than {one}")


def _little_tested(about: dict[str, Any]) -> Path:
    """The data with a test image a class: each worker scores the teacher."""
    data, folder = Path(about["data"]), Path(about["scratch"]) / "little-tested"
    for of_class in (data / "val").iterdir():
        (folder / "val" / of_class.name).mkdir(parents=True)
        first = min(of_class.iterdir())
        (folder / "val" / of_class.name / first.name).symlink_to(first.resolve())
    (folder / "train").symlink_to((data / "train").resolve())
    return folder


def _of_children(what: str, function: Callable[[], None], count: int) -> None:
    """Tells what processes took that the function starts and waits for; of the largest, the memory that it had."""
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    function()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print_line(what, time.perf_counter() - wall, cpu, after.ru_maxrss // 1024, jobs=count)


# --- labels and students ---------------------------------------------------------------------------------------------


def _labels(about: dict[str, Any]) -> None:
    """Stored labels and a student of a set of noise, and a student of as many real images; both are streamed."""
    resident._SMALL = 0  # else sets below 1 GiB are read into memory
    recipe = _recipe(about, f"sre2l/imagenet1k-ipc{about['ipc']}")
    labels = dataclasses.replace(recipe.labels, source="stored", top_k=TOP)
    recipe = dataclasses.replace(recipe, labels=labels)
    run = _opened(recipe, about, "labels", max(10, about["ipc"]))
    teachers = squeeze(run)
    write_noise(run.out, recipe, run.real.classes, {teacher.name: teacher.sha256 for teacher in teachers})
    condensed, views = condensed_set(run), about["classes"] * about["ipc"]
    tell(f"relabel --store, an epoch of {TOP} of all classes", lambda: relabel.relabel(run), views=views)
    arrays = run.out.glob("labels/seed0/*.npy")
    if sum(path.stat().st_size for path in arrays) != 3 * 128 + views * (TOP * _BYTES + 2):
        raise ValueError(f"{stored_bytes(run)} bytes of labels are not those of {views} views")
    tell(f"{_EPOCH}, with these labels", lambda: train_arm(run, CONDENSED, condensed, teachers))
    real = Arm("random", "hard")
    tell("one on as many real images, decoded as they are shown", lambda: train_arm(run, real, condensed, teachers))
    tell("inspect: the run's page", lambda: write_report(run))


def _fkd(about: dict[str, Any]) -> None:
    """FKD files of a set of noise, written and read again."""
    resident._SMALL = 0
    recipe = _recipe(about, f"sre2l/imagenet1k-ipc{about['ipc']}")
    run = _opened(recipe, about, "fkd", 10)
    teachers, folder, views = squeeze(run), run.out / "fkd", about["classes"] * about["ipc"]
    write_noise(run.out, recipe, run.real.classes, {teacher.name: teacher.sha256 for teacher in teachers})
    tell("export as FKD files, an epoch", lambda: write_fkd(run, folder, 1), views=views)
    pixels, classes = condensed_set(run).unread()
    shown = ReplayedViews(resident.place(pixels, run.device), classes, recipe.labels, run.normalize, recipe.seed)

    def epoch() -> None:
        found = FKDViews(folder, shown, about["classes"])
        found.num_hits(1)  # as an import looks whether they are of this set
        for batch in found.epoch(0, recipe.train):
            found.wanted(batch)

    tell("views and labels of an epoch from these files", epoch, views=views)


def _students(about: dict[str, Any]) -> None:
    """A set of noise of any size under the smallest of networks: its labels are replayed, and stored as FKD files."""
    resident._SMALL = 0
    recipe = _recipe(about, f"sre2l/imagenet1k-ipc{about['ipc']}", (POOLED,), about["size"])
    run = _opened(recipe, about, "students", max(10, about["ipc"]))
    teachers = squeeze(run)
    write_noise(run.out, recipe, run.real.classes, {teacher.name: teacher.sha256 for teacher in teachers})
    condensed, views = condensed_set(run), about["classes"] * about["ipc"]
    tell(f"{_EPOCH}, with replayed labels", lambda: train_arm(run, CONDENSED, condensed, teachers), views=views)
    tell("inspect: the run's page", lambda: write_report(run))
    shutil.rmtree(run.out)


# --- a plan ----------------------------------------------------------------------------------------------------------


def _plan(about: dict[str, Any]) -> None:
    """What `plan --gpus 64` takes with the steps of small networks that it measures, beside the start of Python."""
    recipe, device = _small(about), torch.device("cpu")
    command = [sys.executable, "-c", "import torch"]
    _of_children("Python starts and imports PyTorch", lambda: [subprocess.Popen(command).wait()], 1)

    def planned() -> None:
        made = Plan(recipe, extent(recipe, None), 64, device, 0.1)
        for part in PARTS:
            made.measure(part)
        tables(made)

    planned()  # compiles what is kept from then on
    tell("plan for 64 workers", planned, jobs=len(jobs(recipe, about["classes"])))


STAGES = {"squeeze": _squeeze, "mosaics": _mosaics, "recover": _recover, "workers": _workers, "labels": _labels}
STAGES |= {"larger": _mosaics, "students": _students, "fkd": _fkd, "plan": _plan}
"""What is called with the shape and the folders of a rehearsal, by the stage's name."""

if __name__ == "__main__":
    torch.set_num_threads(1)
    STAGES[sys.argv[1]](json.loads(sys.argv[2]))
