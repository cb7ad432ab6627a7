"""Parts of a class, one for each of its condensed images: clusters of what frozen backbones see in its real images."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor

from ..data.real import training_batches
from ..networks.precision import arithmetic
from ..recipe.shared import Views
from ..rng import Stream
from ..run import Run
from ..teachers.cut import backbone
from ..teachers.teacher import Teacher
from ..tensor_files import Form, read_kept
from .class_files import class_files

_LEAST = 0.8  # share of an image's area
_BATCH = 100  # views that go through the backbones together: fixed, because rounding depends on it


def part_means(run: Run, teachers: Sequence[Teacher], lengths: Sequence[int]) -> list[Tensor]:
    """Of each teacher before its classifier, mean features of the parts of each class, seen from the mean of all
    classes: float32 [classes, ipc, D], on the host. lengths: D of each.

    A class's views, recover.means.real_views of each training image, go to recipe.ipc parts by k-means (Lloyd, from
    k-means++) on the features of all teachers beside each other, those of each scaled to a variance of 1 in all. The
    largest part comes first. Found once and kept in the run's folder; the workers of a launch share the classes. Raises
    ValueError as `backbone` does, and if a class has fewer views that differ than parts.
    """
    folder = run.folder_of(
        "class-parts",
        seed=run.recipe.seed,
        parts=run.recipe.ipc,
        views=asdict(part_views(run.recipe.recover)),
        count=run.recipe.recover.means.real_views,
        teachers=[teacher.sha256 for teacher in teachers],
    )
    every = [
        read_kept(path, {f"{k}": _form(len(labels), run.recipe.ipc, length) for k, length in enumerate(lengths)})
        for path, labels in class_files(run, "class parts", folder, functools.partial(_found, run, teachers))
    ]
    means = [torch.cat([of[f"{k}"] for of in every]) for k in range(len(teachers))]
    return [of[:, :-1] - of[:, -1].mean(0) for of in means]


def part_views(views: Views) -> Views:
    """The views with crops of 0.8 of an image at least: clusters of small ones are sizes of crops."""
    low, high = views.crop_scale
    return replace(views.alone(), crop_scale=(max(low, _LEAST), max(high, _LEAST)))


def clusters(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The cluster of each vector, float32 [N, D] -> int64 [N], by k-means; cluster 0 has the most, and so on.

    Raises ValueError if fewer than `count` vectors differ.
    """
    from sklearn.cluster import KMeans  # takes a second to import
    from threadpoolctl import threadpool_limits

    if len(np.unique(vectors, axis=0)) < count:
        raise ValueError(f"fewer than {count} of {len(vectors)} differ")
    with threadpool_limits(1):  # sums of several threads are rounded differently from time to time
        labels = KMeans(count, n_init=1, random_state=seed).fit(vectors).labels_
    ranked = np.argsort(-np.bincount(labels, minlength=count), kind="stable")
    return np.argsort(ranked)[labels]


def _form(num_classes: int, parts: int, length: int) -> Form:
    return torch.float32, [num_classes, parts + 1, length]


def _found(run: Run, teachers: Sequence[Teacher], labels: Sequence[int]) -> dict[str, Tensor]:
    """The means of some classes' parts, and of the whole class after them, by the number of the teacher: float32
    [labels, parts + 1, D] each.
    """
    recipe, split, stream = run.recipe, run.real.train, Stream(run.recipe.seed, "recover/parts/views")
    backbones, seen, known = [backbone(teacher) for teacher in teachers], list[list[Tensor]](), list[Tensor]()
    with arithmetic("fp32"), torch.no_grad():
        for view in range(recipe.recover.means.real_views):
            what = split, recipe.dataset, part_views(recipe.recover), stream, view, _BATCH, run.device
            for images, of in training_batches(*what, classes=labels):
                seen.append([see(images).cpu() for see in backbones])
                known.append(of.cpu())
    run.report_skipped(split)
    if not known:
        raise ValueError(f"none of the training images of class {run.real.classes[labels[0]]!r} can be read")
    features, of_class = [torch.cat(of) for of in zip(*seen, strict=True)], torch.cat(known)
    found = [torch.empty(len(labels), recipe.ipc + 1, of.shape[1]) for of in features]
    for row, label in enumerate(labels):
        mine = [of[of_class == label] for of in features]
        scaled = torch.cat([of / of.var(0, correction=0).sum().sqrt().clamp(min=1e-12) for of in mine], 1)
        seed = int(Stream(recipe.seed, "recover/parts").words(label)[0][0])
        try:
            part = torch.from_numpy(clusters(scaled.numpy(), recipe.ipc, seed))
        except ValueError as error:
            raise ValueError(f"class {run.real.classes[label]!r} has no {recipe.ipc} parts: {error}") from None
        for k, of in enumerate(mine):
            wide = of.double()
            means = [wide[part == number].mean(0) for number in range(recipe.ipc)]
            found[k][row] = torch.stack([*means, wide.mean(0)]).float()
    return {f"{k}": of for k, of in enumerate(found)}
