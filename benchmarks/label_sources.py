"""Every source of a student's labels (labels.source) as training reads it, for the benchmark labels.

Stored labels are written here and are of random logits: reading them takes as long. They are read from the page cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from fkd import write_labels

from fastcondense.files import write_json
from fastcondense.labels.fkd import FKDViews
from fastcondense.labels.labels import Wanted, hard_labels
from fastcondense.labels.stored_labels import FORMAT, StoredLabels, array_shapes, compress, first_rows
from fastcondense.labels.views import ReplayedViews, ViewBatch
from fastcondense.recipe.settings import Train

TOP_K = 5


@dataclass(frozen=True)
class Source:
    """Views and their labels; without_host: nothing is read by the host, so that a step can be a CUDA graph."""

    views: ReplayedViews
    label: Callable[[ViewBatch], Wanted]
    without_host: bool


def other_sources(views: ReplayedViews, num_classes: int, train: Train, epochs: int, folder: Path) -> dict[str, Source]:
    """All but the teachers, by name, with labels of the first `epochs` epochs; files are written in `folder`."""
    train = replace(train, epochs=epochs)
    return {
        "stored": Source(views, _stored(views, num_classes, train, 0, folder / "stored"), without_host=False),
        f"stored-top-{TOP_K}": Source(
            views, _stored(views, num_classes, train, TOP_K, folder / "top"), without_host=False
        ),
        "fkd": _fkd(views, num_classes, train, folder / "fkd"),
        "hard": Source(views, hard_labels, without_host=True),
    }


def _stored(views: ReplayedViews, num_classes: int, train: Train, top_k: int, folder: Path) -> StoredLabels:
    folder.mkdir(parents=True)
    rows = first_rows(views, train)
    logits = torch.randn(rows[-1], num_classes, generator=torch.Generator().manual_seed(0))
    shapes = array_shapes(rows[-1], num_classes, top_k)
    for name, values in compress(logits, top_k, train.temperature).items():
        np.save(folder / f"{name}.npy", values.numpy().astype(shapes[name][1]))
    replay = {"classes": [str(number) for number in range(num_classes)], "labels": {"top_k": top_k}}
    manifest = {"format": FORMAT, "replay": replay, "first_rows": rows, "epochs_done": train.epochs}
    write_json(folder / "manifest.json", manifest)
    return StoredLabels(folder, replay, train.epochs, views.device)


def _fkd(views: ReplayedViews, num_classes: int, train: Train, folder: Path) -> Source:
    count, size = len(views.images), views.images.shape[-1]
    for epoch in range(train.epochs):
        write_labels(folder / f"epoch_{epoch}", count, size, train.batch_size, num_classes, seed=epoch)
    found = FKDViews(folder, views, num_classes)
    return Source(found, found.wanted, without_host=False)
