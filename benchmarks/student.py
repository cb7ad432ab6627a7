"""fastcondense's own student as benchmarks train it: views from the resident set, labels on the fly or in memory."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable

import torch
from measure import DEVICE, Line
from torch import Tensor

from fastcondense.data.real import Normalization
from fastcondense.devices import fastest_arithmetic
from fastcondense.labels.labels import TeacherLabels, Wanted, student_loss
from fastcondense.labels.view_tables import BatchTable, ViewBatch
from fastcondense.labels.views import ReplayedViews
from fastcondense.networks import zoo
from fastcondense.networks.fit import make_optimizer
from fastcondense.networks.precision import arithmetic
from fastcondense.networks.train_step import Batch, CapturedStep, TrainStep
from fastcondense.recipe.settings import Dataset, Labels
from fastcondense.recipe.train import Train
from fastcondense.teachers.teacher import Teacher

TEMPERATURE = 20.0
EPOCHS = 300
QUICK = {"network": "zoo/convnet3", "images": 16, "size": 32, "classes": 10, "batch_size": 8, "workers": 1}


def add_shapes(parser: argparse.ArgumentParser, images_on_cpu: int) -> None:
    """What an epoch of a student is made of."""
    is_gpu, precisions = DEVICE.type == "cuda", ("fp32", "tf32", "bf16")
    fastest = fastest_arithmetic(DEVICE)[0]
    parser.add_argument("--network", default="torchvision/resnet18", help="of student and teacher")
    parser.add_argument("--images", type=int, default=2048 if is_gpu else images_on_cpu)
    parser.add_argument("--size", type=int, default=224 if is_gpu else 64)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=128 if is_gpu else 16)
    for name in ("--precision", "--label-precision"):
        parser.add_argument(name, choices=precisions, default=fastest, help="default: what runs take here")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="of others' DataLoaders")


def about(options: argparse.Namespace) -> Line:
    """What a line says of the shapes."""
    names = ("network", "images", "size", "classes", "batch_size", "precision", "label_precision")
    return {name: getattr(options, name) for name in names} | {
        "shapes": [(options.batch_size, 3, options.size, options.size)],
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}.get(options.precision, options.precision),
    }


class Student:
    """A student on a set of images (uint8 [N, 3, S, S], random without any): its teacher, views and steps."""

    def __init__(self, options: argparse.Namespace, pixels: Tensor | None = None):
        size, count = options.size, options.images
        self.options, self.dataset = options, Dataset(image_size=size, resize=size)
        self.train = Train(
            epochs=EPOCHS, batch_size=options.batch_size, temperature=TEMPERATURE, precision=options.precision
        )
        labels, generator = Labels(precision=options.label_precision), torch.Generator().manual_seed(0)
        if pixels is None:
            pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
        self.pixels, classes = pixels, torch.arange(count, device=DEVICE) % options.classes
        self.views = ReplayedViews(pixels.to(DEVICE), classes, labels, Normalization.of(self.dataset, DEVICE), 0)
        torch.manual_seed(0)
        names = range(options.classes)
        teacher = Teacher.of(self.network(options), "teacher", names, names, self.dataset)
        self.source = TeacherLabels([teacher.to(DEVICE)], labels, 0)
        self.memory = torch.randn(1, count, options.classes, generator=generator).half().to(DEVICE)

    @staticmethod
    def network(options: argparse.Namespace) -> torch.nn.Module:
        return zoo.build(options.network, options.classes)

    def on_the_fly(self, views: ViewBatch, _: BatchTable) -> Wanted:
        return self.source(views)

    def in_memory(self, views: ViewBatch, item: BatchTable) -> Wanted:
        return Wanted(self.memory[:, item.table.ids].float(), views.labels, views.partners, views.share)

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
