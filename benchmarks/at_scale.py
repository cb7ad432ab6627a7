"""Every stage at ImageNet's shape on a machine of any size: 1,000 classes, 1.28 million files, 200 images a class.

    python scripts/imagenet_shaped.py PHOTOS --out DIR --size 64
    fastcondense bench at-scale --data DIR

Each stage is a process of its own; its wall and processor time are kept, which other work on the machine lengthens, and
the most memory that it held of its own, beside pages of files and what it held when it began. Condensed images are
noise, in the real classes' number: how they are stored, read and sent is measured, and not how they are made. At their
true size, `--size 224`, 200 of each of 1,000 classes take 30 GB, and twice that where they are copied:

    fastcondense bench at-scale --data DIR --size 224 --only set students bundle export --ipc 10 50
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from claims import simulate
from session import Session

OF_FILES = ("index", "epoch", "pack", "squeeze", "mosaics", "recover")
"""Stages whose work grows with classes and files; they need those."""
OF_SETS = ("set", "bundle", "export", "status", "plan", "larger", "recover", "labels", "fkd", "students", "workers")
"""Stages of the most classes whose work grows with images a class; larger: mosaics."""
SIZED = {"set", "bundle", "export", "students"}
"""Stages of condensed images of `--size` pixels a side."""
NEED_FILES = {*OF_FILES, "larger", "labels", "fkd", "students", "workers"}
RUNS = {*NEED_FILES, "plan"} - {"index", "epoch", "pack"}
"""Those of scale_runs.py."""
STAGES = tuple(dict.fromkeys((*OF_FILES, *OF_SETS, "claims")))
IPC = 10
"""Images a class where classes grow."""
QUICK = {
    "classes": [5],
    "ipc": [2],
    "size": 16,
    "workers": [1, 8],
    "only": ["set", "bundle", "export", "status", "plan", "claims"],
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="folder of scripts/imagenet_shaped.py, which most stages need")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--ipc", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--size", type=int, default=32, help="side of the condensed images of noise in pixels")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 3, 8, 64, 256], help="of the simulated claims")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--folder", type=Path, help="a disk with room for two sets; default: a temporary folder")


def run(session: Session, options: argparse.Namespace) -> None:
    wanted, most = options.only, max(options.classes)
    if options.data is None and (without := sorted(NEED_FILES & set(wanted))):
        raise ValueError(f"{', '.join(without)} need --data, a folder of scripts/imagenet_shaped.py")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        about = {"scratch": name, "size": options.size, "iterations": 1}
        data = {
            classes: str(_part(options.data, classes, Path(name) / f"{classes}-classes"))
            for classes in options.classes
            if options.data
        }
        grown = about | {"ipc": IPC, "iterations": 4, "gate": 10}
        of_files = [stage for stage in OF_FILES if stage in wanted]
        if data:
            with tempfile.TemporaryDirectory(dir=options.folder) as first:
                classes, part = next(iter(data.items()))
                for stage in of_files:  # compiles what is kept from then on
                    list(_told(stage, grown | {"scratch": first, "classes": classes, "data": part}))
        for classes, part in data.items():
            for stage in of_files:
                _measured(session, stage, classes, 0, grown | {"classes": classes, "data": part})
        for ipc in options.ipc:
            for stage in (stage for stage in OF_SETS if stage in wanted):
                if stage != "workers" or ipc == sorted(options.ipc)[len(options.ipc) // 2]:
                    _measured(session, stage, most, ipc, about | {"classes": most, "data": data.get(most), "ipc": ipc})
    for workers in options.workers if "claims" in wanted else ():
        session.add("claims", f"{workers} workers", **simulate(workers, 20 * workers, latency=1e-3, job=1.0))


def _part(data: Path, classes: int, folder: Path) -> Path:
    """A folder of links to the first classes of both splits."""
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        for source in sorted((data / split).iterdir())[:classes]:
            (folder / split / source.name).symlink_to(source.resolve())
    return folder


def _measured(session: Session, stage: str, classes: int, ipc: int, about: dict[str, Any]) -> None:
    """Runs a stage, and adds a line for each of its parts."""
    sized = {"size": about["size"]} if stage in SIZED else {}
    for told in _told(stage, about):
        session.add(**told, classes=classes, ipc=ipc, **sized)
        print(f"{classes:5} x {ipc:<4} {told['what']}: {told['wall_s']} s, {told['own_mb']} MB", flush=True)


def _told(stage: str, about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Runs a stage in a process, which tells its parts one a line. Raises ValueError if it fails."""
    script = Path(__file__).with_name("scale_runs.py" if stage in RUNS else "scale_stages.py")
    command = [sys.executable, str(script), stage, json.dumps(about)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        yield from (json.loads(line) for line in child.stdout if line.startswith("{"))
    if child.returncode:
        raise ValueError(f"{stage} of {about['classes']} classes ended with {child.returncode}")
