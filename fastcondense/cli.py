"""The command line: ``fastcondense COMMAND [RUN | --recipe NAME] [--any.recipe-field VALUE ...]``."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TextIO

from . import __version__, trust
from .files import is_filled, new_folder
from .recipe import recipe
from .words import is_short_of_memory, one_line, printable
from .workers import interrupt
from .workers.launched import is_launched

_LONGEST_COMPLAINT = 2000  # characters: names of others may be in it

# What torch or a command's own libraries are needed for is imported when it runs: they take seconds, and help, the
# list of recipes and a typo need none of them.
STAGES = {
    "run": ("everything", "squeeze, recover, relabel, train and evaluate, in a row; goes on where it was stopped"),
    "squeeze": ("squeeze", "train or load the teachers, and check them on real images"),
    "recover": ("recover", "make the condensed images"),
    "relabel": ("relabel", "write what replays the soft labels, and with --store the labels themselves"),
    "train": ("train", "train students on the condensed set and on the baselines"),
    "evaluate": (
        "evaluate",
        "put the students beside their baselines in the honest table, print all evaluations, write results/",
    ),
    "rank": ("rank", "DD-Ranking's scores: train the students that they need, print them, write ranking.json"),
    "inspect": (
        "inspect",
        "write report.html of what the run has made so far: images, losses, features, accuracy, costs",
    ),
}
"""The functions of stages.py behind the commands, and what they do."""
PLAN = "RECIPE --gpus N: say what a run will need, before it: jobs, memory, disk and time, from a short measurement"
TOOLS = {
    "new": (
        "plan.new",
        "new",
        "NewOptions",
        "--data DIR: look at an image folder, and write a recipe for it and this machine",
    ),
    "bundle": (
        "exchange.verify",
        "bundle",
        "BundleOptions",
        "RUN: its images, replay specification and teachers, as one file",
    ),
    "verify": ("exchange.verify", "verify", "VerifyOptions", "BUNDLE or RUN: does this machine give the same labels?"),
    "status": (
        "workers.status",
        "status",
        "StatusOptions",
        "RUN: what its workers have done, are doing, and how long it will take",
    ),
    "compare": (
        "report.compare",
        "compare",
        "CompareOptions",
        "RUN or BUNDLE, two or more: all their scores, bytes and seconds in one table, and a page with images",
    ),
    "pack": ("data.pack", "pack_folders", "PackOptions", "image folders into files that the ffcv loader reads"),
    "export": (
        "exchange.export",
        "export",
        "ExportOptions",
        "condensed images as a folder, for Hugging Face, as tensors, for DD-Ranking",
    ),
}
"""Commands that work on files, not on a run: module, function and options; the function takes these and a log, and
yields tables, or returns the exit status or None for 0."""

SHELLS = ("bash", "zsh", "fish", "tcsh")
OTHERS = {
    "plan": PLAN,
    "recipes": "[PATTERN | show NAME]: list the recipes, or one with every value and where it comes from",
    "completion": f"{', '.join(SHELLS)}: the script that completes commands and options there",
    "bench": "benchmarks of a checkout: bench all --quick; bench --help lists them",
}
"""The other commands."""
NOTES = (
    "published: top-1 in % of the recipe's own student, at images a class.",
    "Append -ipc<n> for a number of images a class; `recipes show NAME` prints every value.",
)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status. Wrong input is one line on stderr and status 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "OMP_WAIT_POLICY" not in os.environ:
        # OpenMP's threads spin for milliseconds before they sleep: with other work on the cores a step took 3.5 times
        # as long as with some microseconds. It is read when torch is loaded.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    sys.stdout, sys.stderr = map(_writable, (sys.stdout, sys.stderr))
    warnings.filterwarnings("ignore", "Image size", module="PIL")  # Pillow's, of large images: the readers judge them
    try:
        status = _main(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read our lines has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered is flushed at the end
        return 128 + signal.SIGPIPE
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or interrupt.is_requested():  # libraries may raise what they like then
            if not is_launched():  # else the launcher says so
                sys.stderr.write(interrupt.NOTICE)
            return interrupt.status_of(error)
        is_full = is_short_of_memory(error)
        if not isinstance(error, (ValueError, OSError, SystemExit)) and not is_full:
            raise
        if os.environ.get("FASTCONDENSE_TRACEBACK"):
            traceback.print_exc()
        from .workers.launch import refuse

        text = f"{'not enough memory: ' if is_full else ''}{one_line(_said(error)) or type(error).__name__}"
        if isinstance(error, SystemExit):
            text = f"code that is not fastcondense's called sys.exit({error.code!r})"
        if not refuse(text):
            _complain(text)
        return 1


def _said(error: BaseException) -> str:
    """An error's text; of the system's, the file first and what is wrong with it then."""
    if isinstance(error, OSError) and error.filename is not None and error.filename2 is None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _writable(stream: TextIO | None) -> TextIO:
    """The stream, which takes any text; what goes to a closed one is lost."""
    if stream is None:
        return open(os.devnull, "w")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return stream


def _complain(text: str) -> None:
    text = printable(text)
    if len(text) > _LONGEST_COMPLAINT:
        text = f"{text[: _LONGEST_COMPLAINT // 2]} ... {text[-_LONGEST_COMPLAINT // 2 :]}"
    sys.stderr.write(f"fastcondense: {text}\n")


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        return 0
    command, *rest = arguments
    if command == "--version":
        sys.stdout.write(f"fastcondense {__version__}\n")
        return 0
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ValueError("the current folder has been deleted; change to another one") from None
    if rest[:1] == [""]:
        raise ValueError(f"the first argument of {command} is empty; is a variable of your script not set?")
    if command == "recipes":
        sys.stdout.write(_recipes(rest))
        return 0
    if command == "bench":
        return _bench(rest)
    if command not in {*STAGES, *TOOLS, "plan", "completion"}:
        near = difflib.get_close_matches(command, [*STAGES, *TOOLS, *OTHERS], 1, 0.0)[0]
        raise ValueError(f"there is no command {command!r}; the nearest is {near!r}")
    if command == "completion":
        sys.stdout.write(_completion(rest))
        return 0
    from .command_line import Help

    try:
        return _with_options(command, rest)
    except Help as text:
        sys.stdout.write(str(text))
        return 0


def _with_options(command: str, rest: list[str]) -> int:
    """A command that takes options. Raises Help where that is asked for."""
    from .command_line import parse
    from .options import PlanOptions, parse_plan, parse_stage

    if command in TOOLS:
        name, function, options_name, description = TOOLS[command]
        module = importlib.import_module(f".{name}", __package__)
        chosen: Any = parse(getattr(module, options_name), f"fastcondense {command}", description, rest, None, [])
        from .log import Log

        log = Log()
        with interrupt.listening(), trust.only(getattr(chosen, "code", ())):
            result = getattr(module, function)(chosen, log)
            if not isinstance(result, Iterator):
                return int(result or 0)
            for table in result:
                log.console.print(table)
        return 0
    if command == "plan":
        planned = parse_plan(PlanOptions, command, PLAN, rest)
        from . import stages
        from .log import Log

        with interrupt.listening(), trust.only(planned.given):
            stages.plan(planned, Log())
        return 0
    is_worker = is_launched()
    if not is_worker and not {"-h", "--help", "--help-all"} & set(rest):
        sys.stdout.write(f"fastcondense {__version__}: {command}; loading PyTorch\n")  # which takes seconds
        sys.stdout.flush()
    options = parse_stage(command, STAGES[command][1], rest)
    if len(options.images) > 1:
        assert options.out is not None
        return _of_each_set(command, rest, options.images, options.out)
    alone = [flag for flag in ("--workers", "--restarts") if flag in {word.partition("=")[0] for word in rest}]
    if options.launch.gpus is None and alone:
        raise ValueError(f"{alone[0]} needs --gpus: --gpus 0 --workers N starts N workers on CPUs")
    if options.launch.gpus is not None and not is_worker:
        from .workers.launch import launch

        options.launch.check()
        return launch(options.launch, [command, *rest], _complain)
    with interrupt.listening(with_parent=is_worker), trust.only(options.given, options.out):
        from . import session
        from .workers import distributed

        typed = shlex.join(["fastcondense", command, *rest])
        run = session.prepare(options, is_worker=is_worker, typed=typed)
        session.carry_out(STAGES[command][0], run, options, command)
        distributed.leave()
    return 0


def _of_each_set(command: str, rest: list[str], images: Sequence[str], out: Path) -> int:
    """The command on a run of each published set, in folders of their names below `out`, with the teachers of the
    first; then what `compare` says of them.
    """
    from .report import compare

    if not rest[0].startswith("-"):
        raise ValueError(f"several --images make a run each, and {rest[0]} is one; give --recipe and --out")
    others, is_of_images = list[str](), False
    for word in rest:
        is_of_images = word.startswith("--images") if word.startswith("--") else is_of_images
        others += [word] * (not is_of_images)
    names = compare.names_of([Path(text) for text in images])
    for name, text in zip(names, images, strict=True):
        teachers = out / name / "teachers"
        if name != names[0] and not is_filled(teachers) and (out / names[0] / "teachers").exists():
            with new_folder(teachers) as copied:
                shutil.copytree(out / names[0] / "teachers", copied, dirs_exist_ok=True)
        sys.stdout.write(f"{out / name}: {text}\n")
        one = [*others, "--images", text, "--out", str(out / name)]
        if status := _with_options(command, one):
            return status
    if STAGES[command][0] in ("everything", "evaluate"):
        return _with_options("compare", [*(str(out / name) for name in names), "--out", str(out / "compare.html")])
    return 0


def _bench(arguments: list[str]) -> int:
    """Runs the benchmarks' runner, which is in a checkout of the repository alone, with the other arguments."""
    runner = Path(__file__).resolve().parents[1] / "benchmarks" / "runner.py"
    if not runner.exists():
        raise ValueError("bench needs a checkout of the repository (git clone, pip install -e .): it runs benchmarks/")
    return subprocess.run([sys.executable, runner, *arguments]).returncode


def _recipes(arguments: list[str]) -> str:
    """The catalogue, a line a recipe: those that a pattern fits; or with `show NAME` one recipe, value by value."""
    from .recipe import catalogue

    if arguments[:1] == ["show"]:
        if len(arguments) != 2:
            raise ValueError("recipes show needs one name, as sre2l/digits-ipc10")
        return catalogue.resolved(arguments[1])
    if arguments in (["-h"], ["--help"]):
        return f"usage: fastcondense recipes {OTHERS['recipes']}\n"
    if len(arguments) > 1:
        raise ValueError("recipes takes a pattern, as '*/cifar10*', or show NAME")
    found = [catalogue.entry(name) for name in catalogue.find(*arguments)]
    wide = max(len(entry.name) for entry in found)
    lines = []
    for entry in found:
        accuracies = ", ".join(f"{top1:g} at {ipc}" for ipc, top1 in entry.published.items()) or "-"
        lines += [
            f"{entry.name:{wide}}  {entry.size:3} px  published: {accuracies}",
            f"{'':{wide}}  {entry.description}",
        ]
    return "\n".join([*lines, "", *NOTES]) + "\n"


def _completion(arguments: list[str]) -> str:
    """A shell's completion script."""
    from .command_line import completion
    from .options import Options, PlanOptions

    def completed(kind: type[Options]) -> type:
        return dataclasses.make_dataclass(
            "Named", [("recipe", Literal[recipe.names()], recipe.names()[0])], bases=(kind,), frozen=True
        )

    commands = {name: (completed(Options), text) for name, (_, text) in STAGES.items()}
    commands["plan"] = (completed(PlanOptions), PLAN)
    for name, (module, _, options_name, text) in TOOLS.items():
        commands[name] = (getattr(importlib.import_module(f".{module}", __package__), options_name), text)
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise ValueError(f"completion needs a shell, one of {', '.join(SHELLS)}")
    return completion("fastcondense", commands, arguments[0])


def _usage() -> str:
    helps = {name: text for name, (_, text) in STAGES.items()} | {name: text for name, (*_, text) in TOOLS.items()}
    lines = [f"  {name:12}{text}" for name, text in (helps | OTHERS).items()]
    return (
        "usage: fastcondense COMMAND --recipe NAME-or-FILE [--data DIR] [--out DIR] [--seed N] [--FIELD VALUE ...]\n"
        "       fastcondense COMMAND RUN [--FIELD VALUE ...]    goes on in the folder of a run, or of a bundle\n\n"
        + "\n".join(lines)
        + "\n\nfastcondense COMMAND --help shows the options that people change (with --recipe NAME: their values "
        "in it), --help-all every one.\n"
    )


def _end(status: int) -> NoReturn:
    """Ends the process at once: connections to other workers, who may be gone, are not closed one by one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    exit_status = main()
    if is_launched():
        _end(exit_status)
    sys.exit(exit_status)
