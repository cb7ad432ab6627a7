"""An epoch of a student with soft labels: ours beside packages that evaluate condensed sets, in the same run.

    pip install rethinkdc ddranking
    fastcondense bench peer-epochs --images 64 --size 64 --batch-size 16

ours        views from the resident set, labels by the teacher on the fly; on a GPU as CUDA graphs
rethinkdc   its own training loop: JPEG files, torchvision's crops, a DataLoader, the teacher on the fly
ddranking   its own epoch: tensors in memory, not cropped, a DataLoader, the teacher on the fly

Student and teacher are the same network, untrained; all train on the same images. A line is a variant: median and
quartiles of an epoch in milliseconds, and the ratio of it to ours. A package that is not installed has a line that says
so; without any, ours is not measured either. ddranking 0.2 asks for numpy below 2, but its epoch runs with a newer one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from labels import TEMPERATURE, Student, about
from measure import DEVICE, Line, interleaved
from published.packages import DDRanking, Epoch, Package, RethinkDC, prepared, version
from published.peer import Step, Unavailable
from session import Session
from train import add_shapes

PACKAGES: dict[str, Package] = {"rethinkdc": RethinkDC(), "ddranking": DDRanking()}
QUICK = {"network": "zoo/convnet3", "images": 16, "size": 32, "classes": 10, "batch_size": 8, "workers": 0}
QUICK |= {"repeats": 2}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_shapes(parser)
    parser.add_argument("--packages", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="of their DataLoaders")


def run(session: Session, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        measure(session, options, Path(scratch))


def measure(session: Session, options: argparse.Namespace, scratch: Path) -> None:
    """A line for each variant that can be had, and what is absent."""
    student = Student(options)
    net = Student.network(options)
    epoch = Epoch(
        net, student.pixels, options.classes, options.batch_size, TEMPERATURE, options.workers, DEVICE, scratch
    )
    found = {name: prepared(PACKAGES[name], epoch) for name in options.packages}
    ready = {name: one for name, one in found.items() if isinstance(one, Step)}
    for name, one in found.items():
        if isinstance(one, Unavailable):
            session.skip(name, f"{one.status}: {one.reason}")
    if not ready:
        return
    ready = {"ours": Step(student.epochs(student.step(student.on_the_fly))), **ready}
    try:
        timings = interleaved({name: one.advance for name, one in ready.items()}, options.repeats, 1)
    finally:
        for one in ready.values():
            one.close()
    for name, timing in timings.items():
        more: Line = {"ratio_to_ours": round(timing.median / timings["ours"].median, 3)}
        if name in PACKAGES:
            adaptations = list(ready[name].adaptations)
            more |= {"peer": version(PACKAGES[name]), "runs": PACKAGES[name].what, "adaptations": adaptations}
        print(f"  {name:10} {timing.median:10.1f} ms an epoch, {more['ratio_to_ours']} of ours", flush=True)
        facts = about(options) | ({} if name == "ours" else {"dtype": "float32", "precision": "fp32"})
        session.add("epoch", name, timing, **facts, **more)
