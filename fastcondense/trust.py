"""What a command may run and open: code and paths that the user names, and none that a stranger's file names.

The recipe of a bundle or of a run's folder is data that somebody else may have written. Its names of code and its paths
are used only where the command line says them too; those of `--recipe` are the user's own.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

CODE = (
    "squeeze.teachers",
    "train.student",
    "recover.gradients.network",
    "recover.loss",
    "recover.initial.kind",
    "labels.source",
    "evaluate.baselines",
    "dataset.name",
)
"""Settings that may name code: module:function, file.py:function."""
PATHS = (
    "squeeze.weights",
    "squeeze.probe_weights",
    "squeeze.classes_file",
    "labels.stored",
    "recover.statistics_files",
)
"""Settings that may be paths of files and folders."""

_allowed: contextvars.ContextVar[tuple[frozenset[str] | None, Path | None]] = contextvars.ContextVar(
    "allowed", default=(None, None)
)
"""Names of code and paths that may be used, and the folder whose own paths may be: of each thread of a program its own.
None: a program that calls the library answers for its own recipes."""


@contextlib.contextmanager
def only(given: Iterable[str], folder: Path | None = None) -> Iterator[None]:
    """Within it, no code runs and no path of a recipe is opened that is not `given`, or a path in `folder`."""
    before = _allowed.set((frozenset(given), folder))
    try:
        yield
    finally:
        _allowed.reset(before)


def said(recipe: Any, arguments: Iterable[str]) -> frozenset[str]:
    """Values of the settings of code and paths whose flags are among the arguments of the command line."""
    flags = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    return all_of(recipe, [key for key in (*CODE, *PATHS) if f"--{key}".replace("_", "-") in flags])


def all_of(recipe: Any, keys: Iterable[str] = (*CODE, *PATHS)) -> frozenset[str]:
    """Values of the settings of a recipe that may name code or paths."""
    values: list[str] = []
    for key in keys:
        value = recipe
        for name in key.split("."):
            value = getattr(value, name)
        values += [value] if isinstance(value, str) else value
    return frozenset(values)


def is_given(name: str) -> bool:
    """Whether a name of code, a path or a network is the user's own word."""
    given = _allowed.get()[0]
    return given is None or name in given


def code(reference: str, purpose: str) -> str:
    """Returns the name of code, which may run. Raises ValueError that begins with `purpose` if nobody gave it."""
    if is_given(reference):
        return reference
    raise ValueError(
        f"{purpose} {reference!r} is code that the recipe of a run or bundle names, and your command line does not; if "
        f"you trust it, name it by the setting's flag (--{', --'.join(key.replace('_', '-') for key in CODE)}), or by "
        "--code of verify and export"
    )


def path(name: str, setting: str) -> Path:
    """The path that a setting is, which may be opened. Raises ValueError if nobody gave it."""
    found, folder = Path(name), _allowed.get()[1]
    is_inside = folder is not None and found.resolve().is_relative_to(folder.resolve())
    if is_given(name) or is_inside:
        return found
    raise ValueError(
        f"{setting} {name!r} is a path that the recipe of a run or bundle names, and your command line does not; if "
        f"you mean it, say --{setting.replace('_', '-')} {name}"
    )
