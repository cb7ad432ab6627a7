"""Training on replayed views with labels on the fly, against labels in memory and against stored labels.

    fastcondense bench labels --images 64 --size 64 --batch-size 16
    fastcondense bench labels --extrapolate --images 10000 --size 224 --batch-size 1024 --precision bf16

step      one update: with labels that the teacher computes (on-the-fly), with the logits of all images in memory
          (in-memory), both with views from the resident set, on a GPU as CUDA graphs; views, labels: these parts alone
epoch     ours: tables, views, labels and updates; views: their tables and making alone, the share of loading; stored,
          stored-top-5, fkd, hard: the same with labels of that source; published: FKD files and JPEG images through a
          DataLoader (published_loops.py); published-reading: without updates
extrapolated  ours alone for a few epochs, and 300 epochs computed from them, not measured

Student and teacher are the same network, untrained; stored labels are of random logits and are read from the page
cache. Each line: median and quartiles in milliseconds, and ratios to the variant that is named in it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from measure import DEVICE, Timing, interleaved
from published_loops import PublishedLoop, ReplayedFiles, write_images, write_labels
from session import Session
from student import EPOCHS, TEMPERATURE, Student, about, add_shapes
from student import QUICK as SHORT

from fastcondense.files import write_json
from fastcondense.labels.fkd import FKDViews
from fastcondense.labels.label_rows import array_shapes, compress
from fastcondense.labels.labels import Wanted, hard_labels
from fastcondense.labels.stored_labels import FORMAT, StoredLabels, first_rows, stored_digest
from fastcondense.labels.view_tables import ViewBatch
from fastcondense.labels.views import ReplayedViews
from fastcondense.networks.precision import arithmetic
from fastcondense.recipe.train import Train

TOP_K, WARMUP_EPOCHS = 5, 1
QUICK = SHORT | {"repeats": 4, "warmup": 1, "epoch_repeats": 2}


@dataclass(frozen=True)
class Source:
    """Views and their labels; without_host: nothing is read by the host, so that a step can be a CUDA graph."""

    views: ReplayedViews
    label: Callable[[ViewBatch], Wanted]
    without_host: bool = False


def other_sources(views: ReplayedViews, num_classes: int, train: Train, epochs: int, folder: Path) -> dict[str, Source]:
    """All but the teachers, by name, with labels of the first `epochs` epochs; files are written in `folder`."""
    train = replace(train, epochs=epochs)
    for epoch in range(epochs):
        count, size = len(views.images), views.images.shape[-1]
        write_labels(folder / "fkd" / f"epoch_{epoch}", count, size, train.batch_size, num_classes, seed=epoch)
    fkd = FKDViews(folder / "fkd", views, num_classes)
    return {
        "stored": Source(views, _stored(views, num_classes, train, 0, folder / "stored")),
        f"stored-top-{TOP_K}": Source(views, _stored(views, num_classes, train, TOP_K, folder / "top")),
        "fkd": Source(fkd, fkd.wanted),
        "hard": Source(views, hard_labels, without_host=True),
    }


def _stored(views: ReplayedViews, num_classes: int, train: Train, top_k: int, folder: Path) -> StoredLabels:
    folder.mkdir(parents=True)
    rows = first_rows(views, train)
    logits = torch.randn(rows[-1], num_classes, generator=torch.Generator().manual_seed(0))
    shapes = array_shapes(rows[-1], num_classes, top_k)
    compressed = compress(logits, top_k, train.temperature)
    arrays = {name: values.numpy().astype(shapes[name][1]) for name, values in compressed.items()}
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    replay = {"classes": [str(number) for number in range(num_classes)], "labels": {"top_k": top_k}}
    manifest = {"format": FORMAT, "replay": replay, "first_rows": rows, "epochs_done": train.epochs}
    manifest["digests"] = [stored_digest(arrays, rows, epoch) for epoch in range(train.epochs)]
    write_json(folder / "manifest.json", manifest)
    return StoredLabels(folder, replay, train.epochs, views.device)


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
        compared = {}
        if other := ratios.get(variant):
            compared = {"ratio": round(timing.median / timings[other].median, 4), "ratio_to": other}
        print(f"{kind:6} {variant:18} {timing.median:10.2f} ms {compared or ''}", flush=True)
        session.add(kind, variant, timing, **about(options), part=kind, **compared, **more)


def time_steps(session: Session, student: Student, options: argparse.Namespace) -> None:
    item = next(student.views.tables(0, student.train))
    views = student.views.make(item)
    steps = {"on-the-fly": student.step(student.on_the_fly), "in-memory": student.step(student.in_memory)}
    variants: dict[str, Callable[[], object]] = {name: lambda step=step: step(item) for name, step in steps.items()}
    variants |= {"views": lambda: student.views.make(item), "labels": lambda: student.source(views)}
    with arithmetic(student.train.precision):
        timings = interleaved(variants, options.repeats, options.warmup)
    ratios = {"on-the-fly": "in-memory", "views": "on-the-fly", "labels": "on-the-fly"}
    report(session, "step", timings, ratios, options)


def time_epochs(session: Session, student: Student, options: argparse.Namespace, folder: Path) -> None:
    images, shapes = write_images(folder / "images", student.pixels), (options.images, options.size, options.batch_size)
    batches = write_labels(folder / "fkd" / "epoch_0", *shapes, options.classes)
    files = ReplayedFiles(images, batches, student.dataset)
    published = PublishedLoop(student.network(options), None, files, None, options.workers, TEMPERATURE, DEVICE)
    epochs = WARMUP_EPOCHS + options.epoch_repeats
    sources = {"ours": Source(student.views, student.source, without_host=True)}
    sources |= other_sources(student.views, options.classes, student.train, epochs, folder / "sources")

    def epochs_with(source: Source) -> Callable[[], None]:
        step = student.step(lambda views, _: source.label(views), source.views, source.without_host)
        return student.epochs(step, source.views)

    variants: dict[str, Callable[[], object]] = {name: epochs_with(source) for name, source in sources.items()}
    variants |= {
        "views": student.epochs(student.views.make),
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
    add_shapes(parser, images_on_cpu=256)
    parser.add_argument("--repeats", type=int, default=15, help="of a step")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--epoch-repeats", type=int, default=3, help="of an epoch, after one that is not counted")
    parser.add_argument("--extrapolate", action="store_true", help="300 epochs of ours instead")


def run(session: Session, options: argparse.Namespace) -> None:
    student = Student(options)
    if options.extrapolate:
        extrapolate(session, student, options)
        return
    time_steps(session, student, options)
    with tempfile.TemporaryDirectory() as folder:
        time_epochs(session, student, options, Path(folder))
