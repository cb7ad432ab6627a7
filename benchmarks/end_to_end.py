"""What whole runs cost, stage by stage, and what ImageNet-1k would cost, extrapolated from steps measured here.

    fastcondense bench end-to-end --recipes sre2l/digits-ipc10 edc/digits-ipc10
    fastcondense bench end-to-end --recipes rded/imagenette-ipc10 --data DIR --change train.epochs=100

Every stage of every run is a process of its own. A line a stage: its seconds as the run counts them, those of the whole
process (imports and compilation too) and of the processor; device hours, which are the run's seconds times one GPU, or
the processor's hours; the bytes that the stage has written. A line a run: accuracy and bytes of what is handed on.
Extrapolations are those of `fastcondense plan`, of recover and of one student, and are marked so; --extrapolate alone
makes nothing else.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from measure import DEVICE, Line
from session import Session

from fastcondense.files import read_json
from fastcondense.plan.extent import extent
from fastcondense.plan.plan import Plan
from fastcondense.recipe import recipe as recipes

STAGES = ("squeeze", "recover", "relabel", "train", "evaluate")
QUICK = {
    "recipes": ["rded/digits-ipc1"],
    "change": ["squeeze.epochs=2", "squeeze.gate_images=0", "train.epochs=2", "train.seeds=1"],
    "of": ["sre2l/digits"],
    "ipc": [1],
    "seconds": 1.0,
}


@dataclass(frozen=True)
class Cost:
    """What the process of a stage took."""

    wall_s: float
    cpu_s: float
    peak_memory_bytes: int
    written_bytes: int


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run_stage(stage: str, out: Path, arguments: Sequence[str]) -> Cost:
    """Runs a stage in a process of its own. Raises ValueError with its last line if it fails."""
    before, start = size_of(out), time.monotonic()
    command = [sys.executable, "-m", "fastcondense.cli", stage, *arguments, "--out", str(out)]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, text=True)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise ValueError(f"{stage} failed: {(said.read().strip().splitlines() or ['no output'])[-1]}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes
    wall = time.monotonic() - start
    return Cost(wall, used.ru_utime + used.ru_stime, unit * used.ru_maxrss, size_of(out) - before)


def measure_run(session: Session, name: str, arguments: Sequence[str], out: Path) -> None:
    """All stages of a run, and their lines."""
    out.mkdir(parents=True)
    costs = {stage: run_stage(stage, out, ["--recipe", name, *arguments]) for stage in STAGES}
    result = read_json(out / "result.json")
    made = recipes.load(str(out / "recipe.toml"))
    about: Line = {"shapes": [(result["ipc"], 3, *2 * (made.dataset.image_size,))], "dtype": made.train.precision}
    about |= {key: result[key] for key in ("recipe", "recipe_sha256", "dataset", "method", "ipc", "student", "epochs")}
    about["changed"] = [argument for argument in arguments if argument.startswith("--") and argument != "--data"]
    for stage, cost in costs.items():
        seconds = result["seconds"].get(stage, cost.wall_s)
        hours = seconds / 3600 if DEVICE.type == "cuda" else cost.cpu_s / 3600
        print(
            f"  {name:28} {stage:9} {seconds:9.1f} s, {cost.wall_s:8.1f} s with start-up, {hours:9.5f} "
            f"{DEVICE.type}-hours, {cost.written_bytes / 1e6:9.2f} MB",
            flush=True,
        )
        session.add(
            f"{name} {stage}",
            "ours",
            **about,
            num_bytes=cost.written_bytes,
            stage=stage,
            seconds=round(seconds, 2),
            wall_s=round(cost.wall_s, 2),
            cpu_s=round(cost.cpu_s, 2),
            device_hours=float(f"{hours:.4g}"),
            peak_memory_bytes=cost.peak_memory_bytes,
        )
    scores = {key: result[key] for key in ("top1_last", "top1_best", "baselines", "seeds", "test_images")}
    total = sum(result["bytes"].values())
    session.add(name, "ours", **about, num_bytes=total, stage="all", handed_on=result["bytes"], **scores)


def extrapolate(session: Session, name: str, ipc: int, budget: float) -> None:
    """Prints and stores the hours of recover and of one student that `plan` foresees, and what they are known from."""
    recipe = recipes.load(f"{name}-ipc{ipc}")
    train, evaluate = replace(recipe.train, seeds=1), replace(recipe.evaluate, baselines=())
    recipe = replace(recipe, train=train, evaluate=evaluate)
    made = Plan(recipe, extent(recipe, None), 1, DEVICE, budget)
    stages = {stage.name: stage for stage in made.times if stage.name in ("recover", "train")}
    hours = {stage: float(f"{found.one / 3600:.4g}") for stage, found in stages.items()}
    print(f"EXTRAPOLATED, not run: {recipe.name}, hours on one device: {hours}", flush=True)
    session.add(
        f"{recipe.name} extrapolated",
        "ours",
        dtype=recipe.recover.precision,
        num_bytes=made.disk["images"],
        recipe=recipe.name,
        ipc=ipc,
        extrapolated=True,
        device_hours=hours,
        known_from={stage: found.source for stage, found in stages.items()},
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipes", nargs="*", default=["sre2l/digits-ipc10", "edc/digits-ipc10", "rded/digits-ipc10"])
    parser.add_argument("--data", help="of recipes that are not of the digits")
    parser.add_argument("--change", nargs="*", default=[], metavar="FIELD=VALUE", help="settings of all recipes")
    parser.add_argument("--runs", type=Path, help="folder in which the runs stay; default: they are deleted")
    parser.add_argument("--extrapolate", action="store_true", help="nothing but the extrapolation")
    parser.add_argument("--of", nargs="*", default=["sre2l/imagenet1k"], help="recipes that are extrapolated")
    parser.add_argument("--ipc", nargs="*", type=int, default=[10, 50, 200])
    parser.add_argument("--seconds", type=float, default=60.0, help="for which about each plan is measured")


def flags(options: argparse.Namespace) -> list[str]:
    """--data and the changed settings, as the command line takes them."""
    arguments = ["--data", options.data] if options.data else []
    for change in options.change:
        field, _, value = change.partition("=")
        arguments += [f"--{field}", *value.split()]
    return arguments


def run(session: Session, options: argparse.Namespace) -> None:
    arguments = flags(options)
    with tempfile.TemporaryDirectory() as temporary:
        for name in [] if options.extrapolate else options.recipes:
            out = (options.runs or Path(temporary)) / name
            try:
                measure_run(session, name, arguments, out)
            except (ValueError, OSError) as error:
                session.skip(name, str(error))
    for name in options.of:
        for ipc in options.ipc:
            extrapolate(session, name, ipc, options.seconds)
