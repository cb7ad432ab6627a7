"""What a data set is once it is read: two splits over the same classes, and what tells them from others."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..loaders.beton import Sidecar
from ..loaders.file_names import FileNames
from ..loaders.reading import read_file

_HASHED_TOGETHER = 1 << 16
_SAMPLED = 32
"""Images of a split whose bytes are part of its digest."""


def by_class(order: np.ndarray, labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """The samples of each class among those of `order`, int64 [N], in that order; labels: of all samples."""
    mine = labels[order]
    bounds = np.bincount(mine, minlength=num_classes).cumsum()
    return np.split(order[mine.argsort(kind="stable")], bounds[:-1])


@dataclass(frozen=True, eq=False)
class Split:
    """Labels int64 [N], and images uint8 [N, H, W, 3] in memory, or N files, or N rows of a .beton file."""

    labels: np.ndarray
    images: np.ndarray | None = None
    files: FileNames = field(default_factory=lambda: FileNames(Path(), []))
    beton: Path | None = None
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, ids: np.ndarray) -> Split:
        """The samples `ids`, in that order."""
        images, rows = (None if part is None else part[ids] for part in (self.images, self.rows))
        files = self.files.take(ids) if self.files else self.files
        return Split(self.labels[ids], images, files, self.beton, rows)

    def of_class(self, label: int) -> np.ndarray:
        """The samples of a class, ascending int64 [n]."""
        return self._by_class[label] if label < len(self._by_class) else np.zeros(0, dtype=np.int64)

    @cached_property
    def _by_class(self) -> list[np.ndarray]:
        return by_class(np.arange(len(self)), self.labels, int(self.labels.max(initial=-1)) + 1)

    def check_class(self, ids: np.ndarray, label: int | np.ndarray, path: Path) -> None:
        """Raises ValueError that names the file which chose samples, int64, if one is not there, or is not of the class
        `label`: of all of them, or of each.
        """
        is_there = (ids >= 0) & (ids < len(self))
        if not (is_there.all() and (self.labels[ids] == label).all()):
            raise ValueError(f"{path} is not what a run keeps there; remove it: it chooses images of other classes")

    @cached_property
    def digest(self) -> str:
        """A hash of all labels, all files' names, and the bytes of a few images spread over the split."""
        digest = hashlib.sha256(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        ids: list[int] = (
            np.unique(np.linspace(0, len(self) - 1, _SAMPLED).astype(np.int64)).tolist() if len(self) else []
        )
        if self.images is not None:
            digest.update(str(self.images.shape).encode())
            for sample in ids:
                digest.update(np.ascontiguousarray(self.images[sample]).tobytes())
        elif self.beton is not None and self.rows is not None:
            digest.update(read_file(Sidecar.path(self.beton)) + np.ascontiguousarray(self.rows).tobytes())
        elif self.files:
            root = len(os.path.commonpath([self.files[0].parent.parent, self.files[-1].parent.parent]))
            for begin in range(0, len(self), _HASHED_TOGETHER):
                texts = self.files[begin : begin + _HASHED_TOGETHER].texts()
                names = ("\n" if begin else "") + "\n".join(text[root:] for text in texts)
                digest.update(names.encode(errors="surrogateescape"))
            for sample in ids:
                with contextlib.suppress(ValueError):  # met, and named, when it is read
                    digest.update(read_file(self.files[sample]))
        return digest.hexdigest()


@dataclass(frozen=True)
class RealData:
    """A training and a test split over the same classes."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    said: tuple[str, ...] = ()
    """Remarks that a reader should know: files and folders that are left out."""

    def about(self) -> dict[str, Any]:
        """What tells these images from others: how many there are, and a digest of each split."""
        splits = {"train": self.train, "test": self.test}
        return {name: {"images": len(split), "sha256": split.digest} for name, split in splits.items()}

    def untested(self) -> tuple[str, ...]:
        """A remark on classes without a test image, which accuracies leave out."""
        counts = np.bincount(self.test.labels, minlength=len(self.classes))
        absent = [name for name, count in zip(self.classes, counts, strict=True) if not count]
        return (f"{len(absent)} of {len(counts)} classes have no test image, such as {absent[0]!r}",) if absent else ()

    def check_counts(self, needed: int, purpose: str) -> None:
        """Raises ValueError if a class has fewer training images than `needed`."""
        counts = np.bincount(self.train.labels, minlength=len(self.classes))
        poorest = int(counts.argmin())
        if counts[poorest] < needed:
            raise ValueError(
                f"class {self.classes[poorest]!r} has {counts[poorest]} training images, but {purpose} needs {needed}"
            )


def check_classes(made: Sequence[str], real: Sequence[str], images: object, data: object) -> None:
    """Raises ValueError, with the first difference, if the classes of condensed images are not those of the real data,
    in their order: a class's number is its label."""
    for number, (mine, other) in enumerate(itertools.zip_longest(made, real)):
        if mine != other:
            has = (f"has {name!r} there" if name is not None else "ends before" for name in (mine, other))
            raise ValueError(
                f"{images} and {data} differ in class {number}: the first {next(has)}, the second {next(has)}; choose "
                "another --out, or give the data of these classes"
            )
