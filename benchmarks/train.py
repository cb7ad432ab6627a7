"""A student's epoch on a condensed set: ours beside a plain PyTorch loop, on the same images in the same run.

    fastcondense bench train --images 2048 --size 224 --batch-size 128 --precision bf16

ours              views from the resident set, labels by the teacher on the fly; on a GPU as CUDA graphs
ours-views        the making of its views alone
published         JPEG files, torchvision's transforms, a DataLoader, the teacher on the fly (published_training.py)
published-reading its loader alone
published-bf16    the same in autocast, channels_last, and without reading loss and accuracy on the host
compiled          published-bf16 with student and teacher under torch.compile

Student and teacher are the same network, untrained; images are parts of photographs. Each line: median and quartiles of
an epoch in milliseconds, milliseconds a step, views a second, and the ratio of the published epoch to this one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from fkd import write_images
from labels import TEMPERATURE, Student
from measure import DEVICE, interleaved, missing_compiler
from published_training import LoopStyle, PublishedLoop, TrainingFiles
from sample_images import photograph_parts
from session import Session

STYLES = {
    "published": LoopStyle(),
    "published-bf16": LoopStyle(bf16=True, channels_last=True, reads_loss=False),
    "compiled": LoopStyle(bf16=True, channels_last=True, reads_loss=False, compiled=True),
}
VARIANTS = ("ours", "ours-views", "published", "published-reading", "published-bf16", "compiled")
ON_CPU = VARIANTS[:4]
QUICK = {"network": "zoo/convnet3", "images": 32, "size": 32, "classes": 10, "batch_size": 16, "workers": 1}
QUICK |= {"repeats": 2}


def make(session: Session, options: argparse.Namespace, folder: Path) -> dict[str, Callable[[], object]]:
    """An epoch of each variant that runs here, after a first one that compiles and starts workers."""
    pixels = torch.from_numpy(photograph_parts(options.images, options.size, options.size)).permute(0, 3, 1, 2)
    student = Student(options, pixels.contiguous())
    files = write_images(folder / "images", pixels)
    classes = [k % options.classes for k in range(options.images)]

    def loop(style: LoopStyle) -> PublishedLoop:
        nets = [Student.network(options) for _ in range(2)]
        data = TrainingFiles(files, classes, student.dataset)
        return PublishedLoop(*nets, data, options.batch_size, options.workers, TEMPERATURE, DEVICE, style)

    loops = {"published": loop(STYLES["published"])}
    found: dict[str, Callable[[], object]] = {
        "ours": student.epochs(student.step(student.on_the_fly)),
        "ours-views": student.epochs(student.views.make),
        "published": loops["published"],
        "published-reading": loops["published"].read,
    }
    chosen = options.variants or (VARIANTS if DEVICE.type == "cuda" else ON_CPU)
    for name in VARIANTS:
        reason = missing_compiler() if name == "compiled" else None
        if options.variants is None and name not in chosen:
            reason = "not on a CPU, unless --variants names it"
        elif reason is None and name in chosen and name not in found:
            try:
                loops[name] = loop(STYLES[name])
                loops[name]()
                found[name] = loops[name]
            except Exception as error:  # whatever a compiler raises must not end the benchmark
                reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        if reason is not None:
            session.skip(name, reason)
    return {name: found[name] for name in chosen if name in found}


def add_shapes(parser: argparse.ArgumentParser) -> None:
    """What an epoch of a student is made of; also that of other packages."""
    is_gpu = DEVICE.type == "cuda"
    parser.add_argument("--network", default="torchvision/resnet18", help="of student and teacher")
    parser.add_argument("--images", type=int, default=2048 if is_gpu else 64)
    parser.add_argument("--size", type=int, default=224 if is_gpu else 64)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=128 if is_gpu else 16)
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="bf16" if is_gpu else "fp32")
    parser.add_argument("--label-precision", choices=("fp32", "tf32", "bf16"), default="bf16" if is_gpu else "fp32")
    parser.add_argument("--repeats", type=int, default=3, help="of an epoch, after one that is not counted")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_shapes(parser)
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="of the DataLoader")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, help="default: all on a GPU, those in fp32 elsewhere"
    )


def run(session: Session, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        timings = interleaved(make(session, options, Path(folder)), max(2, options.repeats), 1)
    steps = -(-options.images // options.batch_size)
    ours_dtype = {"fp32": "float32", "bf16": "bfloat16"}.get(options.precision, options.precision)
    for name, timing in timings.items():
        is_ours, speed = name.startswith("ours"), options.images / timing.median
        dtype = ours_dtype if is_ours else "bfloat16" if STYLES[name.removesuffix("-reading")].bf16 else "float32"
        ratio = round(timings["published"].median / timing.median, 3) if "published" in timings else None
        print(f"{name:18} {timing.median:10.1f} ms an epoch, {1e3 * speed:9.1f} views/s, published takes {ratio} times")
        session.add(
            "epoch",
            name,
            timing,
            shapes=[(options.batch_size, 3, options.size, options.size)],
            dtype=dtype,
            network=options.network,
            images=options.images,
            classes=options.classes,
            workers=0 if is_ours else options.workers,
            label_precision=options.label_precision if is_ours else dtype,
            step_ms=float(f"{timing.median / steps:.4g}"),
            views_per_s=round(1e3 * speed, 1),
            published_to_this=ratio,
        )
