"""Kills commands just before each of their operations on files; the same command must then end as if never hurt.

usage: python scripts/kill_everywhere.py [--most N] [--log FILE] [COMMAND ...]

A process imports the library once and forks: a child runs a small command, and before each operation that changes the
disk (opening for writing, renaming, removing, making a folder, flushing) copies its folder: what SIGKILL would leave
there. Before every tenth operation, and the one in the middle, another child does send itself SIGKILL, and what it
leaves is the copy. A child then runs the same command again on what is left: it must end with status 0, and leave the
same files with the same bits as a command that nobody killed, and no others. Times that files keep are not compared.
Each command prints a line of JSON, and with --log each place appends one to FILE, so that the same line goes on where
it was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from fastcondense.cli import main as fastcondense
from fastcondense.report import looks, plots
from fastcondense.report.html import Html

FLAGS = (
    "--recipe sre2l/digits-ipc2 --ipc 1 --dataset.classes 0 1 --squeeze.teachers zoo/convnet1 --squeeze.epochs 6 "
    "--squeeze.gate-images 60 --recover.statistics bn conv --recover.iterations 3 --recover.batch-size 1 "
    "--train.student zoo/convnet1 --train.epochs 1 --train.batch-size 2 --train.seeds 1 --device cpu"
).split()
COMMANDS = {  # what they are given in the folder of work: RUN is that of a finished run
    "run": ["run", *FLAGS, "--out", "NEW"],
    "relabel": ["relabel", "RUN", "--store", "--device", "cpu"],
    "evaluate": ["evaluate", "RUN", "--device", "cpu"],
    "bundle": ["bundle", "RUN", "--out", "set.zip"],
    "export": ["export", "RUN", "--out", "folder"],
    "tensors": ["export", "RUN", "--format", "tensors", "--out", "tensors"],
    "pack": ["pack", "--data", "images", "--out", "packed", "--workers", "0"],
}
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink")
_VOLATILE = ("log.jsonl", ".lock", "report.html")
_EVERY = 10
"""Before each so many operations a child is killed."""
# What reports show is not compared, and their plots take half of the time.
looks.embed = lambda *_: None
plots._svg = lambda *_: Html("<svg></svg>")
Before = Callable[[int], None]


# --- a command in a child --------------------------------------------------------------------------------------------


class Counted:
    """Counts operations of this process that change files in a folder; calls `before` with the number of each."""

    def __init__(self, folder: Path, before: Before):
        self.folder, self.before, self.count = f"{folder}{os.sep}", before, 0
        self.flush, self.mutex = os.fsync, threading.Lock()
        os.fsync = self._fsync
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            path, changes = arguments[0] if arguments else None, event in _CHANGES
        if changes and isinstance(path, str | Path):
            # removing a tree names what is in it by a number of its folder
            is_inside = not os.path.isabs(path) or os.path.abspath(path).startswith(self.folder)
            if is_inside:
                self._step()

    def _fsync(self, file: int) -> None:
        self._step()
        self.flush(file)

    def _step(self) -> None:
        with self.mutex:  # operations of other threads wait until `before` is done
            self.count += 1
            self.before(self.count)


def kill_at(place: int) -> Before:
    """Ends the process before the operation `place`."""
    return lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == place else None


def child(arguments: list[str], work: Path, before: Before = lambda _: None) -> tuple[int, int, str]:
    """Runs a command there; its exit status (negative: a signal), its operations, and what it said."""
    said, counted = work.parent / "said.txt", work.parent / "count.txt"
    counted.write_text("0")
    process = os.fork()
    if process == 0:
        with said.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(work)
        counter, status = Counted(work, before), 70
        try:
            status = fastcondense(arguments)
        except BaseException:  # else it would go on as the process that it was forked from
            traceback.print_exc()
        sys.stdout.flush()
        counted.write_text(str(counter.count))
        (work.parent / "modules.txt").write_text("\n".join(sys.modules))
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return status, int(counted.read_text()), said.read_text(errors="replace")


# --- what is compared ------------------------------------------------------------------------------------------------


def contents(work: Path) -> dict[str, str]:
    """A hash of every file, but for times."""
    return {
        path.relative_to(work).as_posix(): hashlib.sha256(_bits(path)).hexdigest()
        for path in sorted(work.rglob("*"))
        if path.name not in _VOLATILE and (path.is_file() or not any(path.iterdir()))
    }


def _bits(path: Path) -> bytes:
    if path.is_dir() or path.suffix == ".png":  # pictures of matplotlib: that they are there
        return b"" if path.is_dir() or path.parent.name == "condensed" else path.read_bytes()
    if path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            tensors = [(name, file.get_tensor(name).tobytes()) for name in sorted(file.keys())]
            return repr((tensors, _timeless(file.metadata()))).encode()
    if path.suffix in (".json", ".jsonl"):
        return repr([_timeless(json.loads(part)) for part in _documents(path)]).encode()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return repr([(name, archive.read(name)) for name in archive.namelist()]).encode()
    return path.read_bytes()


def _documents(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]


def _timeless(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _timeless(value) for key, value in sorted(tree.items()) if key not in ("seconds", "hours")}
    return [_timeless(value) for value in tree] if isinstance(tree, list) else tree


def left(work: Path) -> dict[str, str]:
    """What a kill left: names of all files without process numbers, and hashes of those that hold no times or names."""
    found = {}
    for path in sorted(work.rglob("*")):
        if path.parent.name.endswith(".claims"):  # the thread that writes lets go of them, before or after
            continue
        name = re.sub(r"-\d+-\d+\.tmp", ".tmp", path.relative_to(work).as_posix())
        is_plain = path.is_file() and not re.search(r"\.(tmp|claims|pt|jsonl|lock|html)(/|$)", name)
        found[name] = hashlib.sha256(_bits(path)).hexdigest() if is_plain else ""
    return found


# --- the campaign ----------------------------------------------------------------------------------------------------


def fill(folder: Path) -> None:
    """Images for `pack`."""
    generator = np.random.default_rng(0)
    for split, label, number in np.ndindex(2, 2, 3):
        path = folder / "images" / ("train", "val")[split] / f"class{label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (9, 11, 3), dtype=np.uint8)).save(path)


def campaign(name: str, base: Path, work: Path, most: int, log: Path | None) -> dict[str, Any]:
    """Ends a command at its operations, all or `most` of them, spread evenly, but for those that the log has done.

    Returns counts and what went wrong.
    """
    arguments, begun, states = COMMANDS[name], time.monotonic(), work.with_name("states")

    def begin() -> None:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(base, work)

    def keep(place: int) -> None:
        shutil.copytree(work, states / str(place), symlinks=True)

    begin()
    shutil.rmtree(states, ignore_errors=True)
    status, operations, said = child(arguments, work, keep)
    if status != 0:
        raise SystemExit(f"{name} without a kill ends with {status}: {said}")
    whole, places = contents(work), range(1, operations + 1)
    if most and most < operations:
        places = sorted({1 + int(operations * (k + 0.5) / most) for k in range(most)})
    kept = [json.loads(line) for line in log.read_text().splitlines()] if log and log.exists() else []
    done = {kill["operation"]: kill for kill in kept if kill["command"] == name and kill["of"] == operations}
    for place in places:
        if place in done:
            continue
        killed, wrong = place % _EVERY == 0 or place == 1 + operations // 2, None
        state = states / str(place)
        if killed:
            begin()
            status, _, said = child(arguments, work, kill_at(place))
            other = differing(left(state), left(work))
            if status != -signal.SIGKILL or other:
                wrong = {"killed": place, "status": status, "differ": other, "said": said[-300:]}
        else:
            shutil.rmtree(work)
            state.rename(work)
        status, _, said = child(arguments, work)
        other = differing(whole, contents(work))
        if status != 0 or other:
            wrong = {"operation": place, "status": status, "differ": other, "said": said[-300:]}
        kill = {"command": name, "operation": place, "of": operations, "is_killed": killed, "wrong": wrong}
        done[place] = kill
        if log:
            with log.open("a") as file:
                file.write(json.dumps(kill) + "\n")
    return {
        "command": name,
        "operations": operations,
        "ended": len(done),
        "kills": sum(kill["is_killed"] for kill in done.values()),
        "wrong": [kill["wrong"] for _, kill in sorted(done.items()) if kill["wrong"]],
        "seconds": round(time.monotonic() - begun, 1),
    }


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """The first names that are in one of them only, or have other hashes."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))[:5]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"of {', '.join(COMMANDS)}; none: all")
    parser.add_argument("--most", type=int, default=0, help="ends of a command at most; 0: before each operation")
    parser.add_argument("--log", type=Path, help="a file that keeps what is done")
    options = parser.parse_args()
    torch.set_num_threads(1)
    has_failed = False
    with tempfile.TemporaryDirectory() as scratch:
        empty, base, work = (Path(scratch).resolve() / name for name in ("empty", "base", "work"))
        empty.mkdir()
        fill(empty)
        shutil.copytree(empty, work)
        status, _, said = child([*COMMANDS["run"][:-1], "RUN"], work)
        if status != 0:
            print(said, file=sys.stderr)
            return 1
        shutil.move(work, base)
        for module in (base.parent / "modules.txt").read_text().splitlines():  # else each child would import them anew
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        (base / "RUN" / "result.json").unlink()
        shutil.rmtree(base / "RUN" / "results")
        for name in options.commands or COMMANDS:
            found = campaign(name, empty if name == "run" else base, work, options.most, options.log)
            print(json.dumps(found), flush=True)
            has_failed |= bool(found["wrong"]) or found["kills"] == 0
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
