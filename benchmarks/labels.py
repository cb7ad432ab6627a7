"""Training on replayed views with labels on the fly, against labels in memory and against stored labels.

    fastcondense bench labels --images 64 --size 64 --batch-size 16
    fastcondense bench labels --extrapolate --images 10000 --size 224 --batch-size 1024 --precision bf16

step      one update: with labels that the teacher computes (on-the-fly), with the logits of all images in memory
          (in-memory), both with views from the resident set, on a GPU as CUDA graphs; views, labels: these parts alone
epoch     ours: tables, views, labels and updates; views: their tables and making alone, the share of loading; stored,
          stored-top-5, fkd, hard: the same with labels of that source (label_sources.py); published: FKD files and
          JPEG images through a DataLoader (fkd.py); published-reading: without updates
extrapolated  ours alone for a few epochs, and 300 epochs computed from them, not measured

Student and teacher are the same network, untrained. Each line: median and quartiles in milliseconds, and ratios to the
variant that is named in it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from fkd import PublishedEpoch, ReplayedFiles, write_images, write_labels
from label_sources import Source, other_sources
from measure import DEVICE, Line, Timing, interleaved
from session import Session
from torch import Tensor

from fastcondense.data.real import Normalization
from fastcondense.labels.labels import TeacherLabels, Wanted, student_loss
from fastcondense.labels.views import BatchTable, ReplayedViews, ViewBatch
from fastcondense.networks import zoo
from fastcondense.networks.fit import make_optimizer
from fastcondense.networks.precision import arithmetic
from fastcondense.networks.train_step import Batch, CapturedStep, TrainStep
from fastcondense.recipe.settings import Dataset, Labels, Train
from fastcondense.teachers.teacher import Teacher

TEMPERATURE = 20.0
EPOCHS = 300
WARMUP_EPOCHS = 1
QUICK = {"network": "zoo/convnet3", "images": 16, "size": 32, "classes": 10, "batch_size": 8, "workers": 1}
QUICK |= {"repeats": 4, "warmup": 1, "epoch_repeats": 2}
RATIOS = {"on-the-fly": "in-memory", "views": "on-the-fly", "labels": "on-the-fly"}


class Student:
    """A student on a set of images (uint8 [N, 3, S, S], random without any): its teacher, views and steps."""

    def __init__(self, options: argparse.Namespace, pixels: Tensor | None = None):
        size, count = options.size, options.images
        dataset = Dataset(image_size=size, resize=size)
        self.train = Train(
            epochs=EPOCHS, batch_size=options.batch_size, temperature=TEMPERATURE, precision=options.precision
        )
        labels = Labels(precision=options.label_precision)
        generator = torch.Generator().manual_seed(0)
        self.pixels = pixels
        if self.pixels is None:
            self.pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
        classes = torch.arange(count, device=DEVICE) % options.classes
        self.views = ReplayedViews(self.pixels.to(DEVICE), classes, labels, Normalization.of(dataset, DEVICE), 0)
        torch.manual_seed(0)
        teacher = Teacher.of(self.network(options), "teacher", range(options.classes), range(options.classes), dataset)
        self.source = TeacherLabels([teacher.to(DEVICE)], labels, 0)
        self.memory = torch.randn(1, count, options.classes, generator=generator).half().to(DEVICE)
        self.options, self.dataset = options, dataset

    @staticmethod
    def network(options: argparse.Namespace) -> torch.nn.Module:
        return zoo.build(options.network, options.classes)

    def on_the_fly(self, views: ViewBatch, _: BatchTable) -> Wanted:
        return self.source(views)

    def in_memory(self, views: ViewBatch, item: BatchTable) -> Wanted:
        logits = self.memory[:, item.table.ids].float()
        return Wanted(logits, views.labels, views.partners, views.share)

    def step(
        self,
        label: Callable[[ViewBatch, BatchTable], Wanted],
        views: ReplayedViews | None = None,
        is_captured: bool = True,
    ) -> TrainStep:
        """A student's update with labels of this kind, of its own views if no others are given."""
        net = zoo.channels_last(self.network(self.options), DEVICE).train()

        def make(item: BatchTable) -> Batch:
            batch = (views or self.views).make(item)
            return Batch(batch.images, label(batch, item), item.num_views)

        optimizer = make_optimizer(net, self.train, is_captured)
        kind = CapturedStep if is_captured else TrainStep
        return kind(net, optimizer, self.train, lambda z, wanted: student_loss(z, wanted, self.train), make)

    def epochs(self, step: Callable[[BatchTable], object], views: ReplayedViews | None = None) -> Callable[[], None]:
        """What does something with every batch of an epoch, each time of the next one."""
        numbers = itertools.count()

        def run() -> None:
            with arithmetic(self.train.precision):
                for item in (views or self.views).tables(next(numbers), self.train):
                    step(item)

        return run

    def epochs_with(self, source: Source) -> Callable[[], None]:
        """The epochs of a student with labels from there."""
        step = self.step(lambda views, _: source.label(views), source.views, source.without_host)
        return self.epochs(step, source.views)


def report(
    session: Session,
    kind: str,
    timings: dict[str, Timing],
    ratios: dict[str, str],
    options: argparse.Namespace,
    **more: int,
) -> None:
    """The lines of a benchmark, printed too."""
    for variant, timing in timings.items():
        other = ratios.get(variant)
        ratio = round(timing.median / timings[other].median, 4) if other else None
        print(
            f"{kind:6} {variant:18} {timing.median:10.2f} ms" + (f", {ratio} of {other}" if other else ""), flush=True
        )
        compared = {"ratio": ratio, "ratio_to": other} if other else {}
        session.add(kind, variant, timing, **about(options), part=kind, **compared, **more)


def about(options: argparse.Namespace) -> Line:
    return {
        "network": options.network,
        "shapes": [(options.batch_size, 3, options.size, options.size)],
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}.get(options.precision, options.precision),
        "images": options.images,
        "size": options.size,
        "classes": options.classes,
        "batch_size": options.batch_size,
        "precision": options.precision,
        "label_precision": options.label_precision,
    }


def time_steps(session: Session, student: Student, options: argparse.Namespace) -> None:
    item = next(student.views.tables(0, student.train))
    views = student.views.make(item)
    steps = {"on-the-fly": student.step(student.on_the_fly), "in-memory": student.step(student.in_memory)}
    variants: dict[str, Callable[[], object]] = {name: lambda step=step: step(item) for name, step in steps.items()}
    variants |= {"views": lambda: student.views.make(item), "labels": lambda: student.source(views)}
    with arithmetic(student.train.precision):
        timings = interleaved(variants, options.repeats, options.warmup)
    report(session, "step", timings, RATIOS, options)


def time_epochs(session: Session, student: Student, options: argparse.Namespace, folder: Path) -> None:
    images = write_images(folder / "images", student.pixels)
    batches = write_labels(
        folder / "fkd" / "epoch_0", options.images, options.size, options.batch_size, options.classes
    )
    files = ReplayedFiles(images, batches, student.dataset)
    published = PublishedEpoch(student.network(options), files, options.workers, TEMPERATURE, DEVICE)
    ours = Source(student.views, student.source, without_host=True)
    others = other_sources(
        student.views, options.classes, student.train, WARMUP_EPOCHS + options.epoch_repeats, folder / "sources"
    )
    variants: dict[str, Callable[[], object]] = {
        "ours": student.epochs_with(ours),
        "views": student.epochs(student.views.make),
        **{name: student.epochs_with(source) for name, source in others.items()},
        "published": published,
        "published-reading": published.read,
    }
    size = sum(path.stat().st_size for path, _ in batches)
    timings = interleaved(variants, options.epoch_repeats, WARMUP_EPOCHS)
    ratios = dict.fromkeys(variants.keys() - {"ours"}, "ours")
    report(session, "epoch", timings, ratios, options, workers=options.workers, label_bytes_an_epoch=size)


def extrapolate(session: Session, student: Student, options: argparse.Namespace) -> None:
    epoch = student.epochs(student.step(student.on_the_fly))
    timing = interleaved({"ours": epoch}, options.epoch_repeats, WARMUP_EPOCHS)["ours"]
    minutes = round(EPOCHS * timing.median / 60e3, 2)
    print(f"an epoch takes {timing.median / 1e3:.2f} s; {EPOCHS} epochs, extrapolated: {minutes} minutes")
    extrapolated = {"epochs_measured": options.epoch_repeats, f"minutes_of_{EPOCHS}_epochs_extrapolated": minutes}
    session.add("extrapolated", "ours", timing, **about(options), part="extrapolated", **extrapolated)


def add_options(parser: argparse.ArgumentParser) -> None:
    is_gpu = DEVICE.type == "cuda"
    parser.add_argument("--network", default="torchvision/resnet18", help="of student and teacher")
    parser.add_argument("--images", type=int, default=2048 if is_gpu else 256)
    parser.add_argument("--size", type=int, default=224 if is_gpu else 64)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=128 if is_gpu else 16)
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="bf16" if is_gpu else "fp32")
    parser.add_argument("--label-precision", choices=("fp32", "tf32", "bf16"), default="bf16" if is_gpu else "fp32")
    parser.add_argument("--repeats", type=int, default=15, help="of a step")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--epoch-repeats", type=int, default=3, help="of an epoch, after one that is not counted")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of the published way's DataLoader")
    parser.add_argument("--extrapolate", action="store_true", help="300 epochs of ours instead")


def run(session: Session, options: argparse.Namespace) -> None:
    student = Student(options)
    if options.extrapolate:
        extrapolate(session, student, options)
        return
    time_steps(session, student, options)
    with tempfile.TemporaryDirectory() as folder:
        time_epochs(session, student, options, Path(folder))
