"""What is found in the training images class by class, in files of some classes each that workers share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from ..run import Run
from ..tensor_files import write_tensors
from ..workers.work import Items, shared

MOST_FILES = 64


def class_files(
    run: Run, name: str, folder: Path, find: Callable[[list[int]], dict[str, Tensor]]
) -> list[tuple[Path, list[int]]]:
    """The files in a folder, with the classes of each, that hold what `find` finds in some classes.

    Those that lack are made first; the workers of a launch share them. name: what progress calls it.
    """
    classes = np.arange(len(run.real.classes))
    parts = [part.tolist() for part in np.array_split(classes, min(len(classes), MOST_FILES))]
    files = [(folder / f"part-{number:02d}.safetensors", labels) for number, labels in enumerate(parts)]
    work = Items(name, folder, files, lambda file: file[0].exists())
    if not all(map(work.is_finished, files)):
        for (path, labels), _ in shared(run.log, name, work):
            write_tensors(path, find(labels), {})
    return files
