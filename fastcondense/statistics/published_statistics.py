"""Target statistics in the folders that G-VBSM's and EDC's published code writes.

ConvFeatureHook/<network>=<module>/running.npz has the vectors of the whole data set, and <kind>FeatureHook/class_<k>/
<network>=<module>/running.npz, for kind Conv or BN, those of the class that is the network's output k. <network> is the
network's Python class, or <class>_<teacher>, and <module> its module.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.array_files import read_npz
from ..loaders.reading import naming
from ..log import Log
from ..teachers.moments import Layer
from ..teachers.teacher import Teacher

_CHANNELS = ("running_dd_mean", "running_dd_var")
_PATCHES = ("running_patch_mean", "running_patch_var")


@dataclass(frozen=True)
class PublishedStatistics:
    """The files of a teacher in a folder: of the layers `names`, and of all its layers for each class if has_classes.

    Everything raises a ValueError that names the first file or key which is missing, damaged or misshapen.
    """

    folder: Path
    teacher: Teacher
    names: Collection[str]
    has_classes: bool

    def fingerprint(self) -> str:
        """Hash of the names, sizes and times of all these files."""
        digest = hashlib.sha256()
        paths = [self._path(layer) for layer in self._global_layers]
        if self.has_classes:
            paths += [self._path(layer, k) for k in self.teacher.outputs.tolist() for layer in self.teacher.layers]
        for path in paths:
            try:
                facts = path.stat()
            except OSError:
                raise ValueError(f"recover.statistics_files: there is no {path}") from None
            digest.update(f"{path.relative_to(self.folder)} {facts.st_size} {facts.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def targets(self, image_size: int) -> dict[str, tuple[Tensor, ...]]:
        """The data set's vectors of the layers `names`, as in Teacher.targets, on the host."""
        lengths = self.teacher.lengths(image_size)
        return {
            layer.name: _checked(self._path(layer), _read(self._path(layer), layer, lengths[layer.name]))
            for layer in self._global_layers
        }

    def class_targets(self, image_size: int, log: Log) -> dict[str, tuple[Tensor, ...]]:
        """The published statistics of each class, as Teacher.class_targets; empty without has_classes.

        The published code writes the patches' means under the variances' key and the reverse: where a
        variance is negative, the log says so, and the two are exchanged.
        """
        if not self.has_classes:
            return {}
        lengths, outputs, layers = self.teacher.lengths(image_size), self.teacher.outputs.tolist(), self.teacher.layers
        tables = {layer.name: [torch.empty(len(outputs), length) for length in lengths[layer.name]] for layer in layers}
        for row in log.track(range(len(outputs)), f"published statistics of {self.teacher.name}"):
            for layer in layers:
                vectors = _read(self._path(layer, outputs[row]), layer, lengths[layer.name])
                for table, vector in zip(tables[layer.name], vectors, strict=True):
                    table[row] = vector
        patches = [tables[layer.name] for layer in layers if layer.parts[-1][1] == "patches"]
        if any(bool((vectors[-1] < 0).any()) for vectors in patches):
            log.say(
                f"recover.statistics_files: the class files of teacher {self.teacher.name} have patch means and "
                "variances swapped, as EDC's code writes them; they are put right (recover.swapped_patches matches "
                "them as published)"
            )
            for vectors in patches:
                vectors[-2:] = vectors[-1], vectors[-2]
        return {
            layer.name: _checked(self._path(layer, outputs[0]).parent.parent, tables[layer.name]) for layer in layers
        }

    @property
    def _global_layers(self) -> list[Layer]:
        return [layer for layer in self.teacher.layers if layer.name in self.names]

    def _path(self, layer: Layer, output: int | None = None) -> Path:
        folder = self.folder / ("BNFeatureHook" if layer.is_batch_norm else "ConvFeatureHook")
        network = self._batch_norm_network if layer.is_batch_norm else self._convolution_network
        folder = folder if output is None else folder / f"class_{output}"
        return folder / f"{network}={layer.name}" / "running.npz"

    @cached_property
    def _convolution_network(self) -> str:
        folder = self.folder / "ConvFeatureHook"
        return self._network(folder if self.names else folder / f"class_{int(self.teacher.outputs[0])}")

    @cached_property
    def _batch_norm_network(self) -> str:
        return self._network(self.folder / "BNFeatureHook" / f"class_{int(self.teacher.outputs[0])}")

    def _network(self, folder: Path) -> str:
        """The name that the files of this teacher in the folder begin with."""
        if not folder.is_dir():
            raise ValueError(f"recover.statistics_files: there is no folder {folder}")
        found = sorted({path.name.partition("=")[0] for path in folder.iterdir() if "=" in path.name})
        kind = self.teacher.class_name
        own = f"{kind}_{re.split('[/:]', self.teacher.name)[-1]}"
        for name in found:
            if name.lower() == own.lower():
                return name
        if kind not in found:
            raise ValueError(
                f"recover.statistics_files: {folder} has no statistics of {own} or {kind}, but of "
                f"{', '.join(found) or 'no network'}"
            )
        return kind


def _read(path: Path, layer: Layer, lengths: Sequence[int]) -> list[Tensor]:
    keys = [key for _, what in layer.parts for key in (_PATCHES if what == "patches" else _CHANNELS)]
    if not path.exists():
        raise ValueError(f"recover.statistics_files: there is no {path}")
    problem = "recover.statistics_files: {path} cannot be read: {error}"
    arrays = read_npz(path, keys, problem)
    with naming(path, problem):
        found = {key: array.astype(np.float32) for key, array in arrays.items()}
    for key, length in zip(keys, lengths, strict=True):
        if key not in found:
            raise ValueError(f"recover.statistics_files: {path} lacks {key}")
        if found[key].shape != (length,):
            raise ValueError(
                f"recover.statistics_files: {path}: {key} has shape {found[key].shape}, but the layer needs "
                f"{(length,)}; another network, image size or recover.patch_size?"
            )
    return [torch.from_numpy(found[key]) for key in keys]


def _checked(path: Path, vectors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The vectors: mean, variance, mean, variance. Raises ValueError if they cannot be that."""
    if not all(bool(vector.isfinite().all()) for vector in vectors):
        raise ValueError(f"recover.statistics_files: {path} has numbers that are not finite")
    if any(bool((vector < 0).any()) for vector in vectors[1::2]):
        raise ValueError(f"recover.statistics_files: {path} has negative variances")
    return tuple(vectors)
