"""The user's own functions by name: module:function, or path/to/file.py:function; the current folder comes first."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from . import trust, vision
from .words import is_short_of_memory


def is_own(name: str) -> bool:
    """Whether a setting names the user's own code, not one of the things that ship."""
    return ":" in name


def load_function(reference: str, purpose: str) -> Callable[..., Any]:
    """The function that `reference` names; what it raises becomes a ValueError of one line that names it.

    Raises ValueError that begins with `purpose` if there is none, or if only a stranger's recipe names it (trust.py).
    """
    module_name, _, function = reference.rpartition(":")
    module = _module(reference, purpose)
    if not callable(getattr(module, function, None)):
        raise ValueError(f"{purpose} {reference!r}: {module_name} has no function {function!r}")
    return _naming(getattr(module, function), f"{purpose} {reference!r}")


def _naming(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except (Exception, SystemExit) as error:
            if is_short_of_memory(error):
                raise
            text = " ".join(str(error).split())
            raise ValueError(
                f"{what} raised {type(error).__name__}: {text}; FASTCONDENSE_TRACEBACK=1 shows where"
            ) from error

    return call


def source_sha256(reference: str, purpose: str) -> str:
    """Hash of the file that the function stands in, not of what it imports.

    Raises ValueError as `load_function`, and for a file that is another one than was imported.
    """
    load_function(reference, purpose)
    file = _file_of(_module(reference, purpose))
    if not file:
        raise ValueError(f"{purpose} {reference!r} is in no file")
    found = _digest(file)
    if _imported.get(file, found) != found:
        raise ValueError(f"{purpose} {reference!r}: {file} was changed after it was imported; start again")
    return found


def _file_of(module: ModuleType) -> str:
    """The file that the module was read from; empty if there is none, as for those of archives and of prompts."""
    file = getattr(module, "__file__", None) or ""
    return file if Path(file).is_file() else ""


def _digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


_imported: dict[str, str] = {}
"""Hashes of the files of modules, as they were when they were first asked for."""


def _module(reference: str, purpose: str) -> ModuleType:
    name = reference.rpartition(":")[0]
    if not name:
        raise ValueError(f"{purpose} {reference!r} must be module:function or path/to/file.py:function")
    trust.code(reference, purpose)
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    _ = vision.torchvision  # prepared, in case the module imports it
    if name.endswith(".py") and not Path(name).is_file():
        raise ValueError(f"there is no file {name}")
    try:
        if name.endswith(".py"):
            return _module_of_file(Path(name))
        module = import_module(name)
        if (file := _file_of(module)) and file not in _imported:
            _imported[file] = _digest(file)
        return module
    except ImportError as error:
        raise ValueError(f"{purpose} {reference!r} cannot be imported: {error}") from None
    except (Exception, SystemExit) as error:  # whatever its lines do
        text = " ".join(str(error).split())
        raise ValueError(f"{purpose} {reference!r} cannot be imported: {type(error).__name__}: {text}") from error


def _module_of_file(path: Path) -> ModuleType:
    """The module in a file, under a name of its own: two files of one name, or one that was changed, do not get in each
    other's way."""
    source = path.read_bytes()
    name = f"fastcondense_user_{hashlib.sha256(str(path.resolve()).encode() + source).hexdigest()[:16]}"
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, path)
        if specification is None or specification.loader is None:
            raise ValueError(f"{path} is no Python file")
        sys.modules[name] = importlib.util.module_from_spec(specification)
        try:
            exec(
                compile(source, path, "exec", dont_inherit=True), vars(sys.modules[name])
            )  # not what is cached beside the file
        except BaseException:
            del sys.modules[name]  # half of a module is none
            raise
    return sys.modules[name]
