"""How far real images are from a teacher's statistics, groups of like difficulty, and the groups' statistics (PSM).

The images of a class are ranked by how far the moments of each, at the inputs of a teacher's BatchNorms, are from the
running ones; ranks are averaged over teachers, and the class is cut into as many groups as it is to have condensed
images. Slot k is matched with the statistics of group k of all classes. arXiv 2609.34299, as a note on it gives the
formulas. There the statistics are running averages over epochs of forward passes, which converge to those here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.real import square_batches
from ..networks.precision import arithmetic
from ..run import Run
from ..teachers.moments import Moments
from ..teachers.teacher import Teacher
from ..tensor_files import Form, read_kept
from .class_files import class_files
from .collector import Members, Pool

_BATCH = 100  # images that go through the teachers together: fixed, because rounding depends on it
_EPSILON = 1e-6


def distances(moments: Moments, targets: Moments) -> Tensor:
    """Distance of each image's moments from the targets, float64 [N]: the mean over layers of
    (|mean - m| + |log (var + eps) / (v + eps)|) / sqrt(C). moments: of each image, [N, C]; targets: [C].
    """
    found = []
    for (mean, var, *_), (m, v, *_) in zip(moments, targets, strict=True):
        spread = ((var.double() + _EPSILON) / (v.double() + _EPSILON)).log()
        norms = (mean.double() - m.double()).norm(dim=1) + spread.norm(dim=1)
        found.append(norms / mean.shape[1] ** 0.5)
    return torch.stack(found).mean(0)


def ranks(values: np.ndarray) -> np.ndarray:
    """The place of each value among them, from the least; the first of equal ones comes first."""
    places = np.empty(len(values), dtype=np.int64)
    places[np.argsort(values, kind="stable")] = np.arange(len(values))
    return places


def grade(run: Run, teachers: Sequence[Teacher]) -> list[list[np.ndarray]]:
    """The training samples of each class by group, from easy to hard; gives teachers the statistics of the groups.

    Every image is seen once, as the evaluation transform shows it; what is found is kept in the run's folder, and the
    workers of a launch share the classes. Raises ValueError if no teacher has a BatchNorm whose input is matched, or
    a class has fewer images that can be read than groups.
    """
    graders = [teacher for teacher in teachers if any(layer.is_batch_norm for layer in teacher.layers)]
    if not graders:
        raise ValueError("difficulty is told by the statistics of BatchNorms, and no teacher has one that is matched")
    folder = run.folder_of(
        "difficulty",
        groups=run.recipe.ipc,
        statistics=sorted(run.recipe.recover.statistics),
        teachers=[[teacher.name, teacher.sha256] for teacher in graders],
    )
    files = class_files(run, "difficulties", folder, functools.partial(_graded, run, graders))
    found = [_kept(run, graders, labels, path) for path, labels in files]
    for which, teacher in enumerate(graders):
        for layer in teacher.layers:
            teacher.group_targets[layer.name] = _joined(found, f"{which}/{layer.name}")
    return [
        [part[f"ids/{label}/{group}"].numpy() for group in range(run.recipe.ipc)]
        for part, (_, labels) in zip(found, files, strict=True)
        for label in labels
    ]


def _kept(run: Run, teachers: Sequence[Teacher], labels: Sequence[int], path: Path) -> dict[str, Tensor]:
    """What `_graded` has found of some classes. Raises ValueError for a file that cannot be that."""
    groups = run.recipe.ipc
    ids = {f"ids/{label}/{group}": label for label in labels for group in range(groups)}
    forms: dict[str, Form] = dict.fromkeys(ids, (torch.int64, [-1]))
    counts = [f"{which}/{one.name}/counts" for which, teacher in enumerate(teachers) for one in teacher.layers]
    forms |= dict.fromkeys(counts, (torch.float64, [groups]))
    for which, teacher in enumerate(teachers):
        for layer in teacher.layers:
            table: Form = (torch.float64, [groups, len(teacher.targets[layer.name][0])])
            forms |= dict.fromkeys((f"{which}/{layer.name}/means", f"{which}/{layer.name}/squares"), table)
    found = read_kept(path, forms)
    if not all(len(found[name]) for name in ids) or any(bool((found[name] <= 0).any()) for name in counts):
        raise ValueError(f"{path} is not what a run keeps there; remove it: a group has no image")
    for name, label in ids.items():
        run.real.train.check_class(found[name].numpy(), label, path)
    return found


def _graded(run: Run, teachers: Sequence[Teacher], labels: Sequence[int]) -> dict[str, Tensor]:
    """Of some classes: the samples of each group, and what the pools of the groups hold of each teacher's layers."""
    split, groups, found = run.real.train, run.recipe.ipc, dict[str, Tensor]()
    pools: dict[str, Pool] = {}
    for label in labels:
        members, read = split.of_class(label), []
        moments: list[list[list[Tensor]]] = [[[] for _ in teacher.layers] for teacher in teachers]
        with arithmetic("fp32"):
            for pixels, batch in square_batches(split, run.recipe.dataset, run.device, _BATCH, ids=members):
                read.append(batch.cpu().numpy())
                for teacher, layers in zip(teachers, moments, strict=True):
                    for layer, vectors in zip(layers, teacher.image_moments(run.normalize(pixels)), strict=True):
                        layer.append(torch.stack(vectors[:2]))
        run.report_skipped(split)
        ids, name = np.concatenate(read or [members[:0]]), run.real.classes[label]
        if len(ids) < groups:
            raise ValueError(f"class {name!r} has {len(ids)} readable images; {groups} groups of difficulty are wanted")
        every = [[torch.cat(layer, 1) for layer in layers] for layers in moments]  # [2, N, C] each
        scores = [
            distances([(mean, var) for mean, var in layers], teacher.matched_targets())
            for teacher, layers in zip(teachers, every, strict=True)
        ]
        order = np.argsort(sum(ranks(score.cpu().numpy()) for score in scores), kind="stable")
        parts = np.array_split(order, groups)
        group_of = torch.from_numpy(np.repeat(np.arange(groups), list(map(len, parts)))).to(run.device)
        for which, (teacher, of_layers) in enumerate(zip(teachers, every, strict=True)):
            for one, (means, variances) in zip(teacher.layers, of_layers, strict=True):
                key, rows = f"{which}/{one.name}", torch.from_numpy(order).to(run.device)
                if key not in pools:
                    pools[key] = Pool(groups, means.shape[1], run.device, has_between=True)
                pools[key].add(Members(group_of, 1), means[rows], variances[rows])
        found |= {f"ids/{label}/{group}": torch.from_numpy(ids[part]) for group, part in enumerate(parts)}
    for name, pool in pools.items():
        found |= {f"{name}/{key}": getattr(pool, key).cpu() for key in ("counts", "means", "squares")}
    return found


def _joined(parts: Sequence[Mapping[str, Tensor]], name: str) -> tuple[Tensor, Tensor]:
    """Means and variances of the groups over all parts, float32 [groups, C] each, on the host."""
    first, *others = [Pool.of(*(part[f"{name}/{key}"] for key in ("counts", "means", "squares"))) for part in parts]
    for other in others:
        first.merge(other)
    return first.vectors()
