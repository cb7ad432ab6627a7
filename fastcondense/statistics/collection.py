"""The pass over the real images that collects targets, in parts of some classes that workers share.

What a part gives is kept in a file until all of them are there: a pass that was interrupted goes on with the others,
and the targets are the same to the bit however many workers there are.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.real import training_batches
from ..loaders.reading import naming
from ..recipe.shared import Views
from ..rng import Stream
from ..run import Run
from ..tensor_files import read_tensors, write_tensors
from ..workers.work import Items, shared
from .collector import Collector

NamedVectors = dict[str, tuple[Tensor, ...]]
"""Means and variances by the name of their layer."""
_MOST_PARTS = 64


class Collection:
    """Epochs of training images, read once for all collectors; by default one, seen as teachers in training see them.

    collectors: what is to be collected, by the file that is going to keep it. purpose: of the views' random numbers.
    """

    def __init__(
        self,
        run: Run,
        collectors: Mapping[Path, Collector],
        views: Views | None = None,
        epochs: int = 1,
        purpose: str = "squeeze/targets",
    ):
        self.run, self.collectors = run, collectors
        self.views, self.epochs, self.stream = views or run.recipe.squeeze, epochs, Stream(run.recipe.seed, purpose)
        num_classes = len(run.real.classes)
        self.parts = [part.tolist() for part in np.array_split(range(num_classes), min(num_classes, _MOST_PARTS))]
        numbers = sorted(path.stem.removeprefix("targets") for path in collectors)  # leftovers.py knows the name
        self.folder = run.out / "teachers" / f"parts{''.join(numbers)}"

    def collect(self) -> None:
        """Collects this worker's parts; returns when all of them are there, or have been joined already."""
        work = Items("parts", self.folder, range(len(self.parts)), self._is_collected)
        for number, _ in shared(self.run.log, "target statistics", work):
            self._collect(number)

    def joined(self) -> dict[Path, tuple[NamedVectors, NamedVectors]]:
        """Targets of all images and of every class, as `Collector` gives them, by the file that is to keep them."""
        with naming(self.folder, "{path} holds other parts than a run keeps there; remove it: {error}"):
            return self._joined(read_tensors(self._path(number))[0] for number in range(len(self.parts)))

    def _joined(self, parts: Iterable[dict[str, Tensor]]) -> dict[Path, tuple[NamedVectors, NamedVectors]]:
        """Parts are taken one by one: a thousand classes' would not lie in memory together."""
        whole = [collector.like() for collector in self.collectors.values()]
        rows: list[dict[str, list[Tensor]]] = [{} for _ in whole]
        for part in parts:
            for which, collector in enumerate(whole):
                collector.merge(_under(part, f"{which}/all/"))
                for key, table in _under(part, f"{which}/class/").items():
                    rows[which].setdefault(key, []).append(table)
        found = {}
        for path, collector, of_classes in zip(self.collectors, whole, rows, strict=True):
            tables: dict[str, list[Tensor]] = {}
            for key, vectors in of_classes.items():
                tables.setdefault(key.rpartition("/")[0], []).append(torch.cat(vectors))
            found[path] = collector.targets(), {name: tuple(layer) for name, layer in tables.items()}
        return found

    def remove(self) -> None:
        """Removes the parts, once what they give is kept."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _collect(self, number: int) -> None:
        run, classes = self.run, self.parts[number]
        recipe, split = run.recipe, run.real.train
        tensors: dict[str, Tensor] = {}
        collectors = [one.like(classes[0], len(classes) if one.num_classes else 0) for one in self.collectors.values()]
        what = split, recipe.dataset, self.views, self.stream
        for epoch in range(self.epochs):
            batches = training_batches(*what, epoch, recipe.squeeze.batch_size, run.device, classes=classes)
            for images, labels in batches:
                for collector in collectors:
                    collector.add(images, labels)
        run.report_skipped(split)
        for which, collector in enumerate(collectors):
            tensors |= {f"{which}/all/{key}": value for key, value in collector.state().items()}
            for name, vectors in collector.class_targets().items():
                tensors |= {f"{which}/class/{name}/{k}": vector for k, vector in enumerate(vectors)}
        write_tensors(self._path(number), tensors, {})

    def _is_collected(self, number: int) -> bool:
        return self._path(number).exists() or all(path.exists() for path in self.collectors)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:02d}.safetensors"


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
