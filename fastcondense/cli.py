"""The command line: ``fastcondense COMMAND --recipe NAME [--any.recipe-field VALUE ...]``."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from . import __version__, recipe, stages
from .loaders.pack import Packing
from .log import Log
from .pack import PackOptions, pack_folders
from .recipe import Recipe
from .run import Run
from .squeeze import squeeze

COMMANDS = {
    "run": (stages.everything, "squeeze, recover, relabel, train and evaluate, in a row; goes on where it was stopped"),
    "squeeze": (squeeze, "train or load the teachers, and check them on real images"),
    "recover": (stages.recover, "make the condensed images"),
    "relabel": (stages.relabel, "write what replays the soft labels; no label is stored"),
    "train": (stages.train, "train students on the condensed set and on the baselines"),
    "evaluate": (stages.evaluate, "score the students, print the honest table, write result.json"),
    "inspect": (stages.inspect, "write an image grid and the loss curves"),
}


@dataclass(frozen=True)
class Options:
    """Options of a command, and every field of the recipe."""

    recipe: str
    """A name that ships with fastcondense (see `fastcondense recipes`) or a TOML file."""
    data: Path | None = None
    """Folder of the data set."""
    out: Path | None = None
    """Folder of the run; default runs/<recipe>."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    settings: Annotated[Recipe, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Recipe)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status. Wrong input is one line on stderr and status 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        _complain("interrupted; the same command goes on from here")
        return 130
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        if os.environ.get("FASTCONDENSE_TRACEBACK"):
            traceback.print_exc()
        _complain(" ".join(str(error).split()))
        return 1


def _complain(text: str) -> None:
    sys.stderr.write(f"fastcondense: {text}\n")


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        return 0
    command, *rest = arguments
    if command == "--version":
        sys.stdout.write(f"fastcondense {__version__}\n")
        return 0
    if command == "recipes":
        sys.stdout.write("\n".join(recipe.names()) + "\nAppend -ipc<n> for another number of images per class.\n")
        return 0
    if command == "bench":
        return _bench(rest)
    if command == "pack":
        pack_folders(_parse_pack(rest), Log())
        return 0
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, [*COMMANDS, "pack", "bench"], 1, 0.0)[0]
        raise ValueError(f"there is no command {command!r}; the nearest is {near!r}")
    options = _parse(command, rest)
    stage, _ = COMMANDS[command]
    run = Run(
        options.settings, options.out or Path("runs") / options.settings.name, options.data, _device(options.device)
    )
    run.open()
    stage(run)
    run.record()
    return 0


def _bench(arguments: list[str]) -> int:
    """Runs benchmarks/NAME.py, which is in a checkout of the repository alone, with the other arguments."""
    root = Path(__file__).resolve().parents[1]
    names = sorted(path.stem for path in (root / "benchmarks").glob("*.py"))
    if not names:
        raise ValueError("bench needs a checkout of the repository (git clone, pip install -e .): it runs benchmarks/")
    if not arguments or arguments[0] not in names:
        raise ValueError(f"bench needs the name of a benchmark: {', '.join(names)}")
    return subprocess.run([sys.executable, root / "benchmarks" / f"{arguments[0]}.py", *arguments[1:]]).returncode


def _usage() -> str:
    lines = [f"  {name:10}{text}" for name, (_, text) in COMMANDS.items()]
    return (
        "usage: fastcondense COMMAND --recipe NAME-or-FILE [--data DIR] [--out DIR] [--seed N] [--FIELD VALUE ...]\n\n"
        + "\n".join(lines)
        + "\n  recipes   list the recipes"
        + "\n  pack      --data DIR --out FILE.beton or DIR: image folders into files that the ffcv loader reads"
        + "\n  bench     run a benchmark of a checkout: bench loaders --data DIR\n\n"
        + "fastcondense COMMAND --recipe NAME --help lists every FIELD and its value in that recipe.\n"
    )


def _parse(command: str, arguments: list[str]) -> Options:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    name = first.parse_known_args(arguments)[0].recipe
    is_help = "-h" in arguments or "--help" in arguments
    if name is None and not is_help:
        raise ValueError(f"--recipe is missing; known recipes: {', '.join(recipe.names())}")
    settings = recipe.load(name) if name else Recipe()
    options, unknown = tyro.cli(
        Options,
        prog=f"fastcondense {command}",
        description=COMMANDS[command][1],
        default=Options(recipe=name or "", settings=settings),
        args=arguments,
        return_unknown_args=True,
    )
    _refuse(unknown, _flags())
    return options


def _parse_pack(arguments: list[str]) -> PackOptions:
    options, unknown = tyro.cli(PackOptions, prog="fastcondense pack", args=arguments, return_unknown_args=True)
    names = [field.name for kind in (PackOptions, Packing) for field in dataclasses.fields(kind)]
    _refuse(unknown, [f"--{name}".replace("_", "-") for name in names])
    return options


def _refuse(unknown: list[str], flags: list[str]) -> None:
    if unknown:
        near = difflib.get_close_matches(unknown[0].replace("_", "-"), flags, 1, 0.0)[0]
        raise ValueError(f"unknown option {unknown[0]!r}; the nearest is {near!r}")


def _flags() -> list[str]:
    """Every flag, as tyro spells it."""

    def of(tree: dict[str, Any], prefix: str) -> list[str]:
        flags = []
        for name, value in tree.items():
            flags += of(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
        return flags

    names = ["recipe", "data", "out", "device", *of(dataclasses.asdict(Recipe()), "")]
    return [f"--{name}".replace("_", "-") for name in names]


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"there is no device {name!r} here") from None
    torch.backends.cudnn.deterministic = True  # the same job gives the same images
    return device


if __name__ == "__main__":
    sys.exit(main())
