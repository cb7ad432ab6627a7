"""Target statistics over real images: what the moments of convolutions' inputs should be (G-VBSM, spec 1.1)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .files import read_tensors, write_tensors
from .real import split_batches, training_batches
from .rng import Stream
from .run import Run
from .squeeze import teacher_path
from .teacher import Teacher


def complete(run: Run, teachers: Sequence[Teacher]) -> None:
    """Gives teachers the targets that their BatchNorms do not hold: read from the run's folder, or collected and kept.

    They are taken on one epoch of the training images, seen as the teachers' own training sees them, and the images are
    read once for all teachers.
    """
    todo: dict[Path, Collector] = {}
    for teacher in teachers:
        names = [layer.name for layer in teacher.layers if layer.name not in teacher.targets]
        if names:
            todo[_path(run, teacher, names)] = Collector(teacher, names)
    missing = {path: collector for path, collector in todo.items() if not path.exists()}
    if missing:
        with run.stopwatch() as watch:
            for images in _views(run):
                for collector in missing.values():
                    collector.add(images)
        for path, collector in missing.items():
            vectors = {f"{name}/{k}": v for name, layer in collector.targets().items() for k, v in enumerate(layer)}
            write_tensors(path, vectors, {"teacher": collector.teacher.sha256, "seconds": f"{watch.seconds:.3f}"})
        run.log.event("targets", teachers=len(missing), seconds=watch.seconds)
    for path, collector in todo.items():
        state, _ = read_tensors(path)
        for name in collector.names:
            count = sum(key.rpartition("/")[0] == name for key in state)
            collector.teacher.targets[name] = tuple(state[f"{name}/{k}"].to(run.device) for k in range(count))


def _path(run: Run, teacher: Teacher, names: Sequence[str]) -> Path:
    """Beside the teacher's weights, named after all that decides the targets."""
    recover = run.recipe.recover
    identity = run.identity("squeeze") | {
        "teacher": teacher.sha256,
        "layers": list(names),
        "statistics": sorted(recover.statistics),
        "patch_size": recover.patch_size,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return teacher_path(run, teacher.name).with_name(f"targets-{digest[:8]}.safetensors")


def _views(run: Run) -> Iterator[Tensor]:
    """One epoch of training views, with progress."""
    recipe, split = run.recipe, run.real.train
    size = recipe.squeeze.batch_size
    stream = Stream(recipe.seed, "squeeze/targets")
    batches = training_batches(split, recipe.dataset, recipe.squeeze, stream, 0, size, run.device)
    rounds = run.log.track(range(len(split_batches(np.arange(len(split)), size))), "target statistics")
    for _, (images, _) in zip(rounds, batches, strict=False):  # a batch of unreadable files is missing
        yield images


class Collector:
    """Moments of some layers of a teacher over all images that were added, whatever the batches' sizes.

    With shares of the images as weights, the variance is the mean of the batches' variances plus the variance of their
    means (Chan, Golub and LeVeque, 1983). Sums are float64.
    """

    def __init__(self, teacher: Teacher, names: Sequence[str]):
        self.teacher, self.names = teacher, names
        self.count = 0
        self.means: dict[str, list[Tensor]] = {}
        self.squares: dict[str, list[Tensor]] = {}
        """Sums over images of squared deviations from the mean, a pixel."""

    @torch.no_grad()
    def add(self, images: Tensor) -> None:
        """images: normalised [N, 3, S, S] on the teacher's device."""
        _, moments = self.teacher(images)
        num_images, before = len(images), self.count
        self.count += num_images
        for layer, vectors in zip(self.teacher.layers, moments, strict=True):
            if layer.name not in self.names:
                continue
            means, variances = ([vector.double() for vector in vectors[k::2]] for k in (0, 1))
            old = self.means.get(layer.name, [torch.zeros_like(mean) for mean in means])
            squares = self.squares.get(layer.name, [torch.zeros_like(mean) for mean in means])
            shifts = [mean - center for mean, center in zip(means, old, strict=True)]
            self.means[layer.name] = [
                center + shift * (num_images / self.count) for center, shift in zip(old, shifts, strict=True)
            ]
            self.squares[layer.name] = [
                square + num_images * var + shift**2 * (before * num_images / self.count)
                for square, var, shift in zip(squares, variances, shifts, strict=True)
            ]

    def targets(self) -> dict[str, tuple[Tensor, ...]]:
        """Mean and biased variance of the channels, of the patches, or both in a row, float32, by the layer's name."""
        return {
            name: tuple(
                vector.float()
                for mean, square in zip(self.means[name], self.squares[name], strict=True)
                for vector in (mean, square / self.count)
            )
            for name in self.names
        }
