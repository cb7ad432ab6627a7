"""What the command line says: a recipe or a run, what is changed in it, and where its files are."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import tyro

from . import trust
from .command_line import parse
from .loaders.reading import check_folder
from .recipe import recipe
from .recipe.protocol import with_protocol
from .recipe.recipe import Recipe
from .recipe.unread import check_read
from .records import read_data
from .sets.sealed_zip import is_bundle
from .tracking import TrackerName
from .workers.launch import Launch
from .workers.lock import is_held

StageKind = TypeVar("StageKind", bound="Options")
COMMON = [
    *("--recipe", "--data", "--out", "--images", "--protocol", "--device", "--gpus", "--workers", "--seed", "--ipc"),
    *("--squeeze.teachers", "--squeeze.weights", "--recover.iterations", "--recover.batch-size", "--labels.source"),
    *("--train.student", "--train.epochs", "--train.seeds", "--evaluate.baselines"),
]
"""The options that people change, which --help shows."""
EXAMPLES = (
    "sre2l/digits-ipc10",
    "rded/cifar10-ipc10",
    "edc/cifar10-ipc50",
    "rded/imagenette-ipc10",
    "edc/imagenet1k-ipc10",
)


@dataclass(frozen=True)
class Options:
    """Options of a stage, and every field of the recipe."""

    recipe: str = ""
    """A name that ships with fastcondense (see `fastcondense recipes`) or a TOML file; not beside the folder of a run,
    which has its own."""
    data: Path | None = None
    """Folder of the data set; in the folder of a run, the one that it was made from."""
    out: Path | None = None
    """Folder of the run; default runs/<recipe>."""
    images: tuple[str, ...] = ()
    """Condensed images that somebody published, which are imported instead of recovered: a folder of class folders,
    parquet, tensor or .npz files, one such file, or hf://user/set of the Hugging Face Hub. Several make a run each, in
    folders of their names below --out, and are compared."""
    protocol: Literal["", "rd3"] = ""
    """The same labels and training for any images, instead of the recipe's: rd3, one ResNet-18's labels on RDED's
    views, and 400 epochs of batches of 50 (RD3, ICLR'26)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; with --gpus each worker has its own."""
    launch: Annotated[Launch, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Launch)
    store: bool = False
    """Store the labels that relabel replays, and train on them: the same as --labels.source stored."""
    track: tuple[TrackerName, ...] = ()
    """Trackers that losses, learning rates, accuracies, images a second and pictures go to, besides log.jsonl:
    tensorboard, wandb."""
    mixed_versions: bool = False
    """Add images to a set that other versions of torch, timm or fastcondense have begun, which may differ in bits."""
    bundle: tyro.conf.Suppress[Path | None] = None
    given: tyro.conf.Suppress[frozenset[str]] = frozenset()
    """Names of code and paths that the recipe may use: its own, or in a run or bundle those that are flags too."""
    settings: Annotated[Recipe, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Recipe)


@dataclass(frozen=True)
class PlanOptions(Options):
    """Options of `fastcondense plan`: those of a stage, most of all the recipe's fields, and these."""

    seconds: float = 60.0
    """Seconds of measuring, about; steps that are larger than that allows are extrapolated, and the plan says so."""


def parse_stage(command: str, description: str, arguments: list[str]) -> Options:
    """Options of a stage: `[RUN] [--recipe NAME] [--FIELD VALUE ...]`, as `parse_kind` reads them."""
    return parse_kind(Options, command, description, arguments)


def parse_plan(kind: type[StageKind], command: str, description: str, arguments: list[str]) -> StageKind:
    """Options of a command that wants no run, as `parse_kind` reads them: a recipe may be named without --recipe."""
    if arguments and not arguments[0].startswith("-") and not Path(arguments[0]).is_dir():
        if not is_bundle(Path(arguments[0])):
            arguments = ["--recipe", *arguments]
    return parse_kind(kind, command, description, arguments)


def parse_kind(kind: type[StageKind], command: str, description: str, arguments: list[str]) -> StageKind:
    """Options of a stage, or of a command that takes these and more.

    RUN is the folder of a run: it stands for its recipe, for --out, and for the --data that it was made from. Or it is
    a bundle, which is to be unpacked into --out; the default is runs/ and the file's name.
    """
    run, arguments = take_run(_sizes(arguments))
    first = _First(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    first.add_argument("--out", type=Path)
    first.add_argument("--train.student", dest="student", default="")
    first.add_argument("--protocol")
    first.add_argument("--ipc", default="")
    named = first.parse_known_args(arguments)[0]
    name = named.recipe
    if run is not None and name is not None:
        raise ValueError(f"{run} has its own recipe; leave out --recipe {name}")
    is_help = bool({"-h", "--help", "--help-all"} & set(arguments))
    if run is None and name is None and not is_help:
        if named.out is not None and (named.out / "recipe.toml").is_file():
            raise ValueError(
                f"--recipe is missing; to go on with the run in that folder: fastcondense {command} {named.out}"
            )
        raise ValueError(f"--recipe is missing, as {', '.join(EXAMPLES)}; `fastcondense recipes` lists all")
    if run is not None:
        default = kind(**vars(of_run(run)))
        if named.student:
            default = dataclasses.replace(default, settings=_for_student(default.settings, named.student))
    else:
        ipc = None
        with contextlib.suppress(ValueError):  # several, or no number: what is parsed below says so
            ipc = int(named.ipc)
        default = kind(name or "", settings=recipe.load(name, named.student, ipc) if name else Recipe())
    if named.protocol:
        default = dataclasses.replace(default, settings=with_protocol(default.settings, named.protocol))
    options = parse(kind, f"fastcondense {command}", description, arguments, default, COMMON)
    settings = options.settings
    if "--images" in arguments and not options.images:
        raise ValueError("--images needs the place of a set: a folder, a file, or hf://user/set")
    check_read(settings, keys_of(arguments))
    if options.store:
        settings = dataclasses.replace(settings, labels=dataclasses.replace(settings.labels, source="stored"))
    given = trust.all_of(settings) if run is None else trust.said(settings, arguments)
    return dataclasses.replace(options, settings=settings, out=options.out or Path("runs") / settings.name, given=given)


class _First(argparse.ArgumentParser):
    """What is read before the recipe is known; a wrong option is a ValueError."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))


def keys_of(arguments: list[str]) -> list[str]:
    """Dotted names of what the command line's options say: --train.no-decay-all is of train.decay_all."""
    flags = [word.partition("=")[0].removeprefix("--") for word in arguments if word.startswith("--")]
    return [flag.replace("-", "_").replace(".no_", ".") for flag in flags]


def _for_student(settings: Recipe, student: str) -> Recipe:
    """The settings with another student, and with what the shipped recipe of its name says of that student.

    Settings of train that are not the shipped recipe's own stay.
    """
    changes: dict[str, Any] = {"student": student}
    if re.sub(r"-ipc\d+$", "", settings.name) in recipe.names():
        whose = (settings.train.student, student)
        before, after = (recipe.load(settings.name, who, settings.ipc).train for who in whose)
        for name in (field.name for field in dataclasses.fields(settings.train)):
            mine, old, new = (getattr(train, name) for train in (settings.train, before, after))
            changes |= {name: new} if mine == old != new else {}
    return dataclasses.replace(settings, train=dataclasses.replace(settings.train, **changes))


def _sizes(arguments: list[str]) -> list[str]:
    """`--ipc 1,2,5` spelled out, sizes at which a set is scored; with one number there are none."""
    arguments = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--ipc=") else [word])]
    if "--ipc" not in arguments[:-1]:
        return arguments
    at = len(arguments) - 1 - arguments[::-1].index("--ipc")  # the last one counts
    value, rest = arguments[at + 1], [*arguments[:at], *arguments[at + 2 :]]
    if value.startswith("--"):
        return arguments
    if rest[at:] and not rest[at].startswith("--"):
        raise ValueError(f"--ipc takes one number, or some with commas between, got {value!r} and {rest[at]!r}")
    if "," not in value:
        return [*rest, "--ipc", value, "--evaluate.sizes"]
    sizes = value.split(",")
    if not all(size.isdigit() for size in sizes):
        raise ValueError(f"--ipc needs a number, or some with commas between, got {value!r}")
    return [*rest, "--evaluate.sizes", *sizes]


def take_run(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The run or bundle that comes first, and the other arguments. Raises ValueError if it is neither."""
    if not arguments or arguments[0].startswith("-"):
        return None, arguments
    run = Path(arguments[0])
    check_folder(run)
    if not is_bundle(run) and not (run / "recipe.toml").is_file():
        yet = ", yet: another launch has just begun there" if is_held(run) else ""
        raise ValueError(f"{run} is neither the folder of a run, with a recipe.toml, nor a bundle{yet}")
    return run, arguments[1:]


def of_run(run: Path) -> Options:
    """The options that the run was made with; of a bundle, its recipe."""
    if is_bundle(run):
        from .sets.bundle import read_recipe  # torch takes seconds

        return Options(out=Path("runs") / run.stem, bundle=run, settings=read_recipe(run))
    settings = recipe.own_recipe(run / "recipe.toml")
    return Options(data=read_data(run), out=run, settings=settings)
