"""The Python API: recipes, runs with their stages, and views with soft labels for a training loop of one's own.

    import fastcondense as fc

    run = fc.run(fc.recipe("rded/cifar10-ipc10", **{"train.epochs": 50}), data="cifar", out="runs/mine")
    images = run.recover()  # uint8 [classes * ipc, 3, S, S]
    for epoch in fc.views(run, batch_size=100):
        for views, labels in epoch: ...

Locks, files and records are those of the command line, which goes on where this stops, and the other way round.
Whatever a user can mend is a ValueError of one line.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from . import trust
from .files import read_json
from .options import Options, take_run
from .options import of_run as options_of_run
from .recipe import catalogue
from .recipe import recipe as shipped
from .recipe.changed import changed, flat
from .recipe.protocol import with_protocol
from .recipe.recipe import Recipe
from .tracking import TrackerName

if TYPE_CHECKING:
    from torch import Tensor

    from .run import Run
    from .sets.bundle import Contents
    from .students.epochs import EpochViews
    from .students.students import Task

AnyPath = str | os.PathLike[str]
Row = dict[str, str | float]


def recipes(pattern: str = "*") -> list[str]:
    """Names of the recipes that ship and fit a pattern, as `*/cifar10*`, or whose names hold a text without stars.

    Append -ipc<n> for another number of images per class. Raises ValueError if there is none.
    """
    return catalogue.find(pattern)


def recipe(name_or_file: AnyPath, protocol: str = "", **settings: Any) -> Recipe:
    """A recipe that ships, or of a TOML file, with some settings changed: ``**{"train.epochs": 50, "ipc": 5}``.

    protocol: "rd3" as --protocol, with its labels and training instead of the recipe's. train.student brings what the
    recipe says of that student, as on the command line; a table, ``train={"epochs": 50}``, changes what it names.
    Raises ValueError for what there is not, with the nearest name, for values that no run could mean, and for a setting
    that is not read beside the others.
    """
    settings = flat(settings)
    ipc, student = settings.get("ipc"), settings.get("train.student")
    known = student if isinstance(student, str) else "", ipc if isinstance(ipc, int) else None
    found = shipped.load(os.fspath(name_or_file), *known)
    return changed(with_protocol(found, protocol) if protocol else found, settings)


def run(
    recipe: Recipe | AnyPath,
    data: AnyPath | None = None,
    out: AnyPath | None = None,
    *,
    device: str = "auto",
    images: AnyPath | None = None,
    track: Sequence[TrackerName] = (),
    is_silent: bool = False,
) -> Condensation:
    """A run that is new, or goes on in its folder `out` (default runs/<recipe>). Nothing is made or written yet.

    recipe: one of `recipe`, or its name or file. The rest is as the command line's --data, --device, --images and
    --track. is_silent: nothing is printed; the log is written all the same. Raises ValueError for a recipe or data that
    cannot be used, and for a folder that holds something else.
    """
    settings = recipe if isinstance(recipe, Recipe) else shipped.load(os.fspath(recipe))
    options = Options(
        data=_path(data),
        out=_path(out) or Path("runs", settings.name).absolute(),
        images=() if images is None else (os.fspath(images),),
        device=device,
        track=_trackers(track),
        given=trust.all_of(settings),
        settings=settings,
    )
    made = Condensation(options, is_silent=is_silent)
    made._prepared()
    return made


def load(
    path: AnyPath,
    data: AnyPath | None = None,
    out: AnyPath | None = None,
    *,
    device: str = "auto",
    code: str | Sequence[str] = (),
    is_silent: bool = False,
) -> Condensation:
    """A run that is there, or a bundle. Its images and views need no real data; its stages do, and go on in its folder.

    data: default the one that it was made from. out: where the stages unpack a bundle, default runs/<file>. code: what
    its recipe names as module:function and you trust; no other code of it runs. Raises ValueError if there is none.
    """
    place = take_run([str(_path(path))])[0]
    assert place is not None
    options = options_of_run(place)
    return Condensation(
        dataclasses.replace(
            options,
            data=_path(data) or options.data,
            out=_path(out) or _path(options.out),
            device=device,
            given=frozenset((code,) if isinstance(code, str) else code),
        ),
        is_silent=is_silent,
    )


class Condensation:
    """A run: its recipe, its folder and its stages, of which each keeps what is finished.

    `run` and `load` make it. Stages run in this process; several GPUs are the command line's (--gpus), on the same
    folder. Ctrl-C raises KeyboardInterrupt as ever, and the next call goes on.
    """

    def __init__(self, options: Options, *, is_silent: bool):
        assert options.out is not None
        self._options, self._is_silent, self._run, self._is_begun = options, is_silent, None, False
        self.out: Path = options.out
        """The folder of the run."""

    _run: Run | None

    @property
    def recipe(self) -> Recipe:
        """The settings that its stages work with."""
        return self._options.settings if self._run is None else self._run.recipe

    @property
    def images(self) -> Tensor:
        """The condensed images, class by class: uint8 [classes * ipc, 3, S, S]. Raises ValueError if there are none."""
        return self._contents().condensed.first(self.recipe.ipc).images.flatten(0, 1)

    @property
    def labels(self) -> Tensor:
        """The classes of `images`, int64 [classes * ipc]: numbers of `classes`."""
        return self._contents().condensed.first(self.recipe.ipc).flat()[1]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return self._contents().condensed.classes

    def squeeze(self) -> dict[str, Path]:
        """Makes or loads the teachers. Returns the files of their weights, by name."""
        from .teachers.kept import teacher_path

        run = self._carry_out("squeeze")
        return {name: teacher_path(run.out, name) for name in run.recipe.squeeze.teachers}

    def recover(self) -> Tensor:
        """Makes the condensed images, and the teachers first. Returns `images`."""
        self._carry_out("recover")
        return self.images

    def relabel(self) -> Mapping[str, Any]:
        """Writes what replays the labels, and with labels.source stored the labels. Returns what replays them."""
        from .labels.relabel import replay_of

        return replay_of(self._carry_out("relabel"))

    def train(self) -> dict[str, list[Path]]:
        """Trains the students, on the condensed images and on the baselines. Returns the files of their weights, one a
        seed, by what they were trained on."""
        from .students.arms import arms
        from .students.kept import student_folder

        run = self._carry_out("train")
        seeds = range(run.recipe.train.seeds)
        return {
            arm.name: [student_folder(run, arm, number) / "weights.safetensors" for number in seeds]
            for arm in arms(run)
        }

    def evaluate(self) -> list[Row]:
        """Scores the students. Returns the rows of the table, as `pandas.DataFrame` takes them: what was trained on,
        and in % of the test images the mean over seeds and its deviation (std) of top-1 after the last and the best
        epoch, and of top-5; with evaluate.sizes, top-1 at each ipc.
        """
        return _rows(self._carry_out("evaluate"))

    def everything(self) -> list[Row]:
        """All stages in a row, as `fastcondense run` does. Returns the rows of `evaluate`, which it ends with."""
        return _rows(self._carry_out("everything", "run"))

    def inspect(self) -> Path:
        """Writes report.html of what there is so far. Returns its path."""
        return self._carry_out("inspect").out / "report.html"

    def __repr__(self) -> str:
        return f"<Condensation {self.recipe.name} in {self.out}>"

    def _prepared(self) -> Run:
        from . import session

        if self._run is None:
            with trust.only(self._options.given, self.out):
                self._run = session.prepare(self._options, is_silent=self._is_silent)
        return self._run

    def _carry_out(self, stage: str, command: str = "") -> Run:
        from . import session

        if self._is_begun and not self.out.exists():  # somebody has deleted what the run remembers
            self._run = None
        run, self._is_begun = self._prepared(), True
        with trust.only(self._options.given, self.out):
            run.check()
            session.carry_out(stage, run, self._options, command)
        self._options = dataclasses.replace(self._options, images=(), bundle=None)  # they are in the folder now
        return run

    def _contents(self) -> Contents:
        """What lies in the folder of the run, or in a bundle of which no stage has run yet."""
        from .sets.bundle import read_bundle, read_folder

        bundle = self._options.bundle
        return read_folder(self.out) if bundle is None else read_bundle(bundle)

    def _task(self, batch_size: int | None, student: int, device_name: str | None) -> Task:
        """What a student is trained on."""
        from .devices import choose_device
        from .exchange.verify import labeller, weights_of
        from .log import Log
        from .run import Run
        from .sets.bundle import needed_teachers
        from .students.arms import CONDENSED
        from .students.students import task_of

        # views are images, also where the run's own students see features of them
        train = dataclasses.replace(self.recipe.train, frozen=False)
        if batch_size is not None:
            train = dataclasses.replace(train, batch_size=batch_size)
        settings = dataclasses.replace(self.recipe, train=train).check()
        with trust.only(self._options.given, self.out):
            contents = dataclasses.replace(self._contents(), recipe=settings)
            device = choose_device(device_name or self._options.device)
            names = needed_teachers(settings)
            teachers = [labeller(contents, name, *weights_of(contents, name, None)).to(device) for name in names]
            seen = Run(settings, self.out, self._options.data, device, Log(is_silent=True))
            condensed = contents.condensed.first(settings.ipc)
            return task_of(seen, CONDENSED, settings.seed + student, condensed, teachers)


def views(
    condensed: Condensation | AnyPath,
    batch_size: int | None = None,
    *,
    epochs: int | None = None,
    student: int = 0,
    labels: Literal["probabilities", "logits"] = "probabilities",
    device: str | None = None,
) -> EpochViews:
    """The views and soft labels of a set for a training loop of one's own: the bits that `train` trains on.

    condensed: a condensation, or the folder of a run, or a bundle. batch_size, epochs, device: default its own.
    student: the number of the student that sees them, 0 the first. labels: probabilities at the epoch's temperature,
    where labels are hard the classes' shares of a mixed view; or the teachers' mean logits, which mse_ce compares. Real
    images are not needed. Raises ValueError for what is missing, logits of hard labels, and what is not stored.
    """
    from .students.epochs import EpochViews, check_stored

    if labels not in ("probabilities", "logits"):
        raise ValueError(f"labels must be probabilities or logits, got {labels!r}")
    for name, value, least in (("epochs", epochs, 1), ("batch_size", batch_size, 1), ("student", student, 0)):
        if value is not None and (not isinstance(value, int | np.integer) or value < least):
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    found = condensed if isinstance(condensed, Condensation) else load(condensed)
    train = found.recipe.train
    if found.recipe.labels.source == "stored":
        check_stored(train, batch_size, epochs)
    return EpochViews(
        found._task(batch_size, student, device),
        len(found.classes),
        train.temperature if labels == "probabilities" else None,
        train.epochs if epochs is None else epochs,
    )


def _trackers(names: str | Sequence[str]) -> tuple[TrackerName, ...]:
    """Names of trackers, or of one. Raises ValueError for one that there is not."""
    found = (names,) if isinstance(names, str) else tuple(names)
    if unknown := set(found) - set(get_args(TrackerName)):
        raise ValueError(f"track must be among {', '.join(get_args(TrackerName))}, got {unknown.pop()!r}")
    return cast(tuple[TrackerName, ...], found)


def _path(path: AnyPath | None) -> Path | None:
    if path is not None and not os.fspath(path):
        raise ValueError("a path is empty; leave it out, or name a folder")
    return None if path is None else Path(path).absolute()  # a notebook may go to another folder


def _rows(run: Run) -> list[Row]:
    """The table that evaluate has written."""
    if run.recipe.evaluate.sizes:
        curves = read_json(run.out / "curve.json")["top1_last"]
        return [
            {"trained_on": name, "ipc": int(size), **_numbers("top1_last", score)}
            for name, of in curves.items()
            for size, score in of.items()
        ]
    result = read_json(run.out / "result.json")
    rows: list[Row] = []
    for name, scores in {"condensed": result, **result["baselines"]}.items():
        row: Row = {"trained_on": name}
        for key in ("top1_last", "top1_best", "top5_last"):
            row |= _numbers(key, scores[key])
        rows.append(row)
    return rows


def _numbers(key: str, score: Mapping[str, float]) -> Row:
    return {key: score["mean"], f"{key}_std": score["std"]}
