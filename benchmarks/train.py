"""A student's epoch on a condensed set: ours beside a plain PyTorch loop and packages, on the same images in one run.

    fastcondense bench train --images 2048 --size 224 --batch-size 128 --precision bf16
    pip install rethinkdc ddranking && fastcondense bench train --variants ours rethinkdc ddranking

ours              views from the resident set, labels by the teacher on the fly; on a GPU as CUDA graphs
ours-fp32         the same in float32
ours-views        the making of its views alone
published         JPEG files, torchvision's transforms, a DataLoader, the teacher on the fly (published_loops.py)
published-reading its loader alone
published-bf16    the same in autocast, channels_last, and without reading loss and accuracy on the host
compiled          published-bf16 with student and teacher under torch.compile
rethinkdc         its own training loop: JPEG files, torchvision's crops, a DataLoader, the teacher on the fly
ddranking         its own epoch: tensors in memory, not cropped, a DataLoader, the teacher on the fly

Student and teacher are the same network, untrained; images are parts of photographs. Each line: median and quartiles of
an epoch in milliseconds, milliseconds a step, views a second, and the ratio of this epoch to ours. ddranking 0.2 asks
for numpy below 2, but its epoch runs with a newer one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from measure import DEVICE, Line, interleaved, missing_compiler
from published.packages import DDRanking, Epoch, Package, RethinkDC, prepared, version
from published.peer import Step, Unavailable
from published_loops import LoopStyle, PublishedLoop, TrainingFiles, write_images
from sample_images import photograph_parts
from session import Session
from student import QUICK as SHORT
from student import TEMPERATURE, Student, about, add_shapes

PACKAGES: dict[str, Package] = {"rethinkdc": RethinkDC(), "ddranking": DDRanking()}
STYLES = {
    "published": LoopStyle(),
    "published-bf16": LoopStyle(bf16=True, channels_last=True, reads_loss=False),
    "compiled": LoopStyle(bf16=True, channels_last=True, reads_loss=False, compiled=True),
}
ON_CPU = ("ours", "ours-fp32", "ours-views", "published", "published-reading", *PACKAGES)
VARIANTS = (*ON_CPU, "published-bf16", "compiled")
FP32 = {"precision": "fp32", "label_precision": "fp32"}
QUICK = SHORT | {"repeats": 2}


def make(session: Session, options: argparse.Namespace, folder: Path) -> dict[str, Step]:
    """An epoch of each variant that runs here, after a first one that compiles and starts workers."""
    pixels = torch.from_numpy(photograph_parts(options.images, options.size, options.size)).permute(0, 3, 1, 2)
    student = Student(options, pixels.contiguous())
    in_fp32 = argparse.Namespace(**vars(options) | FP32)
    files = write_images(folder / "images", pixels)
    data = TrainingFiles(files, [k % options.classes for k in range(options.images)], student.dataset)

    def loop(style: LoopStyle) -> PublishedLoop:
        nets = [Student.network(options) for _ in range(2)]
        return PublishedLoop(*nets, data, options.batch_size, options.workers, TEMPERATURE, DEVICE, style)

    def epochs(student: Student) -> Callable[[], None]:
        return student.epochs(student.step(student.on_the_fly))

    published = loop(STYLES["published"])
    makers: dict[str, Callable[[], Callable[[], object]]] = {
        "ours": lambda: epochs(student),
        "ours-fp32": lambda: epochs(Student(in_fp32, student.pixels)),
        "ours-views": lambda: student.epochs(student.views.make),
        "published": lambda: published,
        "published-reading": lambda: published.read,
        **{name: lambda name=name: loop(STYLES[name]) for name in ("published-bf16", "compiled")},
    }
    chosen = options.variants or (VARIANTS if DEVICE.type == "cuda" else ON_CPU)
    for name in VARIANTS if options.variants is None else ():
        if name not in chosen:
            session.skip(name, "not on a CPU, unless --variants names it")
    ready: dict[str, Step] = {}
    for name in chosen:
        if name in PACKAGES:
            net, workers = Student.network(options), min(4, options.workers)
            shapes = (options.classes, options.batch_size, TEMPERATURE, workers, DEVICE, folder)
            found = prepared(PACKAGES[name], Epoch(net, student.pixels, *shapes))
            if isinstance(found, Unavailable):
                session.skip(name, f"{found.status}: {found.reason}")
            else:
                ready[name] = found
        elif name == "compiled" and (reason := missing_compiler()):
            session.skip(name, reason)
        elif (step := session.attempt(name, makers[name], is_optional=name == "compiled")) is not None:
            ready[name] = Step(step)
    return ready


def add_options(parser: argparse.ArgumentParser) -> None:
    add_shapes(parser, images_on_cpu=64)
    parser.add_argument("--repeats", type=int, default=3, help="of an epoch, after one that is not counted")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        help="default: all on a GPU; elsewhere not published-bf16 and compiled",
    )


def run(session: Session, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ready = make(session, options, Path(folder))
        try:
            timings = interleaved({name: one.advance for name, one in ready.items()}, max(2, options.repeats), 1)
        finally:
            for one in ready.values():
                one.close()
    steps = -(-options.images // options.batch_size)
    for name, timing in timings.items():
        speed, more = options.images / timing.median, dict[str, object]()
        facts: Line = about(options) | {"workers": 0 if name.startswith("ours") else options.workers}
        if name == "ours-fp32":
            facts |= FP32 | {"dtype": "float32"}
        elif not name.startswith("ours"):
            style = STYLES.get(name.removesuffix("-reading"), LoopStyle())
            facts["dtype"] = facts["label_precision"] = "bfloat16" if style.bf16 else "float32"
        if name in PACKAGES:
            more = {"peer": version(PACKAGES[name]), "runs": PACKAGES[name].what}
            more["adaptations"] = list(ready[name].adaptations)
        if "ours" in timings:
            more["ratio_to_ours"] = round(timing.median / timings["ours"].median, 3)
        ratio = more.get("ratio_to_ours")
        print(f"{name:18} {timing.median:10.1f} ms an epoch, {1e3 * speed:9.1f} views/s, {ratio} of ours", flush=True)
        facts |= {"step_ms": float(f"{timing.median / steps:.4g}"), "views_per_s": round(1e3 * speed, 1)}
        session.add("epoch", name, timing, **facts, **more)
