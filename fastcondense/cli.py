"""The command line: ``fastcondense COMMAND [RUN | --recipe NAME] [--any.recipe-field VALUE ...]``."""

from __future__ import annotations

import contextlib
import difflib
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from . import __version__, stages, trust
from .data.jobs import with_batch_size
from .data.pack import PackOptions, pack_folders
from .devices import choose_device
from .exchange.export import ExportOptions, export
from .exchange.verify import BundleOptions, VerifyOptions, bundle, verify
from .log import Log
from .options import Options, PlanOptions, parse_plan, parse_stage, parse_tool
from .recipe import recipe
from .run import Run
from .sets.bundle import unpack
from .sets.imported import import_images
from .sets.published_sets import read_published
from .words import printable
from .workers import distributed, interrupt, lock
from .workers.launch import launch, refuse
from .workers.status import StatusOptions, status

STAGES: dict[str, tuple[Callable[[Run], object], str]] = {
    "run": (stages.everything, "squeeze, recover, relabel, train and evaluate, in a row; goes on where it was stopped"),
    "squeeze": (stages.squeeze, "train or load the teachers, and check them on real images"),
    "recover": (stages.recover, "make the condensed images"),
    "relabel": (stages.relabel, "write what replays the soft labels, and with --store the labels themselves"),
    "train": (stages.train, "train students on the condensed set and on the baselines"),
    "evaluate": (stages.evaluate, "score the students, print the honest table, write result.json"),
    "rank": (stages.rank, "DD-Ranking's scores: train the students that they need, print them, write ranking.json"),
    "inspect": (
        stages.inspect,
        "write report.html of what the run has made so far: images, losses, features, accuracy, costs",
    ),
}
# of these commands a second launch on the run takes its part, and leaves to the first what only one may do
HELPED: dict[str, Callable[[Run], object]] = {
    "run": stages.recover,
    "squeeze": stages.squeeze,
    "recover": stages.recover,
}
PLAN = "RECIPE --gpus N: say what a run will need, before it: jobs, memory, disk and time, from a short measurement"
# what works on files, not on a run: a function of its options and a log, which returns the exit status or None for 0
TOOLS: dict[str, tuple[Callable[[Any, Log], int | None], type, str]] = {
    "bundle": (bundle, BundleOptions, "RUN: its images, replay specification and teachers, as one file"),
    "verify": (verify, VerifyOptions, "BUNDLE or RUN: does this machine give the same labels?"),
    "status": (status, StatusOptions, "RUN: what its workers have done, are doing, and how long it will take"),
    "pack": (pack_folders, PackOptions, "image folders into files that the ffcv loader reads"),
    "export": (export, ExportOptions, "condensed images as a folder, for Hugging Face, as tensors, for DD-Ranking"),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status. Wrong input is one line on stderr and status 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _main(arguments)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or interrupt.is_requested():  # libraries may raise what they like then
            if not distributed.is_launched():  # else the launcher says so
                sys.stderr.write(interrupt.NOTICE)
            return interrupt.status_of(error)
        if not isinstance(error, (ValueError, OSError, torch.OutOfMemoryError)):
            raise
        if os.environ.get("FASTCONDENSE_TRACEBACK"):
            traceback.print_exc()
        text = " ".join(str(error).split())
        if not refuse(text):
            _complain(text)
        return 1


def _complain(text: str) -> None:
    sys.stderr.write(f"fastcondense: {printable(text)}\n")


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
    if command == "plan":
        planned = parse_plan(PlanOptions, command, PLAN, rest)
        with trust.only(planned.given):
            stages.plan(planned, Log())
        return 0
    if command in TOOLS:
        tool, kind, description = TOOLS[command]
        chosen: Any = parse_tool(command, description, kind, rest)
        with trust.only(getattr(chosen, "code", ())):
            return int(tool(chosen, Log()) or 0)
    if command not in STAGES:
        near = difflib.get_close_matches(command, [*STAGES, *TOOLS, "plan", "recipes", "bench"], 1, 0.0)[0]
        raise ValueError(f"there is no command {command!r}; the nearest is {near!r}")
    stage, description = STAGES[command]
    options = parse_stage(command, description, rest)
    is_worker = distributed.is_launched()
    if options.launch.gpus is not None and not is_worker:
        options.launch.check()
        return launch(options.launch, [command, *rest])
    with interrupt.listening(with_parent=is_worker), trust.only(options.given, options.out):
        _run(command, options, stage, is_worker)
    return 0


def _run(command: str, options: Options, stage: Callable[[Run], object], is_worker: bool) -> None:
    """Runs a stage in this process, which may be one of several workers."""
    assert options.out is not None
    device = choose_device("cpu" if options.launch.gpus == 0 else options.device)
    if is_worker:
        device = distributed.join(device)
    log = Log(is_silent=distributed.rank() > 0)
    run = Run(options.settings, options.out, options.data, device, log, options.track)
    run.check()
    published = None
    if options.images is not None:
        published = read_published(options.images, run.real.classes, run.recipe.ipc, run.recipe.dataset)
    with contextlib.closing(log), lock.locked(options.out, _share(command, options, device)) as is_helper:
        if options.bundle is not None:
            with distributed.first_alone():
                unpack(options.bundle, options.out)
        run.open(is_helper=is_helper)
        if published is not None:
            import_images(published, run.out / "condensed", run.recipe, run.log)
        with run.cost(command):
            (HELPED[command] if is_helper else stage)(run)
        if is_helper:
            log.say(f"helped another launch on {options.out}, which does what is left of the run")
        elif not distributed.rank():
            run.record()
    distributed.leave()


def _share(command: str, options: Options, device: torch.device) -> str:
    """What launches have in common that may work on a run side by side, because they make the same bits; nothing if
    this one must be alone."""
    settings = options.settings
    if command not in HELPED or options.images is not None or options.bundle is not None:
        return ""
    # batch_size 0 becomes what fits, and the run's from then on
    return f"{with_batch_size(settings, 0).sha256()} {device.type} torch {torch.__version__} {__version__}"


def _bench(arguments: list[str]) -> int:
    """Runs the benchmarks' runner, which is in a checkout of the repository alone, with the other arguments."""
    runner = Path(__file__).resolve().parents[1] / "benchmarks" / "runner.py"
    if not runner.exists():
        raise ValueError("bench needs a checkout of the repository (git clone, pip install -e .): it runs benchmarks/")
    return subprocess.run([sys.executable, runner, *arguments]).returncode


def _usage() -> str:
    others = {
        "plan": PLAN,
        "recipes": "list the recipes",
        "bench": "benchmarks of a checkout: bench all --quick; bench --help lists them",
    }
    helps = {name: text for name, (_, text) in STAGES.items()}
    helps |= {name: text for name, (_, _, text) in TOOLS.items()} | others
    lines = [f"  {name:10}{text}" for name, text in helps.items()]
    return (
        "usage: fastcondense COMMAND --recipe NAME-or-FILE [--data DIR] [--out DIR] [--seed N] [--FIELD VALUE ...]\n"
        "       fastcondense COMMAND RUN [--FIELD VALUE ...]    goes on in the folder of a run, or of a bundle\n\n"
        + "\n".join(lines)
        + "\n\nfastcondense COMMAND --recipe NAME --help lists every FIELD and its value in that recipe; "
        "fastcondense pack --help what pack takes.\n"
    )


def _end(status: int) -> NoReturn:
    """Ends the process at once: connections to other workers, who may be gone, are not closed one by one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    exit_status = main()
    if distributed.is_launched():
        _end(exit_status)
    sys.exit(exit_status)
