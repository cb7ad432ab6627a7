"""Target statistics over real images: what the moments of convolutions' inputs should be (G-VBSM, spec 1.1)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .files import read_tensors, write_tensors
from .real import split_batches, training_batches
from .rng import Stream
from .run import Run
from .teacher import Teacher


def complete(run: Run, teacher: Teacher, folder: Path) -> None:
    """Gives `teacher` the targets that its BatchNorms do not hold: read from `folder`, or collected and kept there.

    They are taken on one epoch of the training images, seen as the teacher's own training sees them.
    """
    names = [layer.name for layer in teacher.layers if layer.name not in teacher.targets]
    if not names:
        return
    recover = run.recipe.recover
    identity = run.identity("squeeze") | {
        "teacher": teacher.sha256,
        "layers": names,
        "statistics": sorted(recover.statistics),
        "patch_size": recover.patch_size,
    }
    path = (
        folder / f"targets-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]}.safetensors"
    )
    if not path.exists():
        stream = Stream(run.recipe.seed, "squeeze/targets")
        size = run.recipe.squeeze.batch_size
        batches = training_batches(run.real.train, run.recipe.dataset, run.recipe.squeeze, stream, 0, size, run.device)
        rounds = run.log.track(range(len(split_batches(np.arange(len(run.real.train)), size))), "target statistics")
        with run.stopwatch() as watch:
            collected = collect(teacher, (views for _, (views, _) in zip(rounds, batches, strict=False)))
        tensors = {f"{name}/{k}": vector for name in names for k, vector in enumerate(collected[name])}
        write_tensors(path, tensors, {"seconds": f"{watch.seconds:.3f}", "identity": json.dumps(identity)})
        run.log.event("targets", teacher=teacher.name, layers=len(names), seconds=watch.seconds)
    state, _ = read_tensors(path)
    for name in names:
        count = sum(key.rpartition("/")[0] == name for key in state)
        teacher.targets[name] = tuple(state[f"{name}/{k}"].to(run.device) for k in range(count))


@torch.no_grad()
def collect(teacher: Teacher, batches: Iterable[Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """Moments of every layer over all images of `batches` (normalised [N, 3, S, S]), float32, by the layer's name.

    Those of one batch of all images, whatever the batches' sizes: with shares of the images as weights, the variance is
    the mean of the batches' variances plus the variance of their means. Sums are float64.
    """
    count = 0
    means: list[Tensor] = []
    squares: list[Tensor] = []  # sums of squared deviations from `means`, a number
    for images in batches:
        _, moments = teacher(images)
        vectors = [vector.double() for layer in moments for vector in layer]
        total = count + len(images)
        if count == 0:
            means, squares = [torch.zeros_like(v) for v in vectors[::2]], [torch.zeros_like(v) for v in vectors[1::2]]
        for k, (mean, var) in enumerate(zip(vectors[::2], vectors[1::2], strict=True)):
            shift = mean - means[k]
            means[k] += shift * (len(images) / total)
            squares[k] += len(images) * var + shift**2 * (count * len(images) / total)
        count = total
    flat = iter([vector for mean, square in zip(means, squares, strict=True) for vector in (mean, square / count)])
    return {layer.name: tuple(next(flat).float() for _ in range(2 * len(layer.parts))) for layer in teacher.layers}
