"""Paths of many files: what takes a hundred bytes a file, where objects for them take five hundred."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload


class FileNames(Sequence[Path]):
    """Files below a folder, in order, of which the names there are kept; a Path is made of one that is asked for."""

    def __init__(self, root: Path, names: list[str]):
        self.root, self.names = root, names
        self._before = os.fspath(root / "x")[:-1]

    @staticmethod
    def of(paths: Iterable[str | Path]) -> FileNames:
        """Files that may lie anywhere."""
        return FileNames(Path(), [str(Path(path)) for path in paths])

    @overload
    def __getitem__(self, places: int) -> Path: ...
    @overload
    def __getitem__(self, places: slice) -> FileNames: ...
    def __getitem__(self, places: int | slice) -> Path | FileNames:
        if isinstance(places, slice):
            return FileNames(self.root, self.names[places])
        return self.root / self.names[places]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Path]:
        return map(Path, self.texts())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileNames) and list(self.texts()) == list(other.texts())

    def __add__(self, other: FileNames) -> FileNames:
        return FileNames(Path(), [*self.texts(), *other.texts()])

    def take(self, places: Iterable[int]) -> FileNames:
        """The files at these places, in that order."""
        return FileNames(self.root, [self.names[place] for place in places])

    def texts(self) -> Iterator[str]:
        """The paths as text."""
        return (self._before + name for name in self.names)
