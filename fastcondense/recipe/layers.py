"""What a recipe is put together from: shared files, its own text and tables, and what was asked for, as layers.

``load("edc/cifar10-corrected-ipc50")`` reads ``recipes/edc/cifar10.toml``, merges its ``[corrected]`` table, then its
``[by_ipc.50]`` table if it has one, and sets ipc to 50; last comes the ``[by_student."zoo/resnet18"]`` table of the
student, which may have by_ipc tables of its own. A file may begin with ``extends = ["data/cifar10"]``, the shared files
(``recipes/shared/data/cifar10.toml``) that it adds to. A path to a TOML file works the same way.
"""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import Any

from .toml_text import parse_toml
from .train import Train

RECIPES = Path(__file__).parents[1] / "recipes"
CORRECTED = "corrected"
"""The table with a method's known bugs mended."""
IPC = 10
"""Images a class where nothing says how many."""
NAME = re.compile(r"[\w.-]+(/[\w.-]+)*")
_BY_IPC = re.compile(r"[1-9]\d*")
_BY_STUDENT = re.compile(r"(zoo|torchvision|timm)/.+|.+:.+")

Sourced = tuple[str, dict[str, Any]]
"""Where settings come from, and the settings as a tree; later layers replace what earlier ones say."""


def layers(
    text: str | bytes, source: str, ipc: int | None = None, *, corrected: bool = False, student: str = ""
) -> list[Sourced]:
    """What a recipe is put together from, first to last: shared files and its own, their tables, what was asked for.

    Raises ValueError for what is no table where one must be, and for one of no number of images or no architecture.
    """
    files, special = [], []
    keys = ("by_ipc", "by_student", CORRECTED)
    for where, tree in _files(text, source):
        special.append((where, {key: _table(tree.get(key, {}), key, source) for key in keys}))
        _check_tables(special[-1][1], where)
        files.append((where, {key: value for key, value in tree.items() if key not in (*keys, "published")}))

    def tables(key: str, *path: str) -> list[Sourced]:
        """The tables of all files under special[key] and the further keys."""
        found = []
        for where, of_file in special:
            table = of_file[key]
            for name in path:
                table = table.get(name, {})
            found.append((f"{where}, [{'.'.join((key, *path))}]", table))
        return [layer for layer in found if layer[1]]

    ipc = ipc if ipc is not None else merged(files).get("ipc", IPC)
    files.append(("ipc", {"ipc": ipc}))
    files += tables(CORRECTED) if corrected else []
    files += tables("by_ipc", str(ipc))
    files += [("train.student", {"train": {"student": student}})] if student else []
    student = str(_table(merged(files).get("train", {}), "train", source).get("student", Train.student))
    for where, table in tables("by_student", student):
        files.append((where, {key: value for key, value in table.items() if key != "by_ipc"}))
    files += tables("by_student", student, "by_ipc", str(ipc))
    return files


def _check_tables(tables: dict[str, dict[str, Any]], where: str) -> None:
    """Raises ValueError for a table that no run can ask for, and for one that says which tables hold."""
    found = [(CORRECTED, tables[CORRECTED])]
    found += _numbered(tables["by_ipc"], "by_ipc", where)
    for student, table in tables["by_student"].items():
        name = f"by_student.{student}"
        if not _BY_STUDENT.fullmatch(student):
            raise ValueError(f"{where}: {name} can never be read")
        found.append((name, _table(table, name, where)))
        found += _numbered(_table(table.get("by_ipc", {}), f"{name}.by_ipc", where), f"{name}.by_ipc", where)
    for name, table in found:
        if "ipc" in table:
            raise ValueError(f"{where}: {name} sets ipc, which says the tables that are read; set it outside of them")
        if name.startswith("by_student") and "student" in _table(table.get("train", {}), f"{name}.train", where):
            raise ValueError(f"{where}: {name} sets train.student, which says the tables that are read; set it outside")


def _numbered(table: dict[str, Any], name: str, where: str) -> list[Sourced]:
    """The tables by number of images a class, by their names."""
    for number, inner in table.items():
        if not _BY_IPC.fullmatch(number):
            raise ValueError(f"{where}: {name}.{number} can never be read")
        _table(inner, f"{name}.{number}", where)
    return [(f"{name}.{number}", inner) for number, inner in table.items()]


def merged(found: list[Sourced]) -> dict[str, Any]:
    """The layers as one tree."""
    tree: dict[str, Any] = {}
    for _, layer in found:
        _merge(tree, copy.deepcopy(layer))
    return tree


def _table(value: Any, key: str, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{source}: {key} must be a table, got {value!r:.80}")
    return value


def tree_of(text: str | bytes, source: str) -> dict[str, Any]:
    """A TOML text over the shared files that it extends, in their order."""
    return merged(_files(text, source))


def _files(text: str | bytes, source: str) -> list[Sourced]:
    """The shared files that a TOML text extends, each after those that it extends itself, and the text last."""
    own = parse_toml(text, source)
    found: list[Sourced] = []
    extends = own.pop("extends", [])
    for name in extends if isinstance(extends, list) else [extends]:
        path = RECIPES / "shared" / f"{name}.toml"
        if not isinstance(name, str) or not NAME.fullmatch(name) or ".." in name or not path.is_file():
            raise ValueError(f"{source} extends {name!r}, but there is no {path.name} among the shared recipes")
        found += _shared(name)
    return [*found, (source, own)]


@functools.cache
def _shared(name: str) -> list[Sourced]:
    return _files((RECIPES / "shared" / f"{name}.toml").read_text(), f"shared/{name}")


def _merge(tree: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value
