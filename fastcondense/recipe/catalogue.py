"""The recipes that ship, as people look for them: what each is, what was published for it, and where its values come
from."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tomli_w

from .layers import layers, merged
from .recipe import MARK, file_of, load, names, published, split_name
from .settings import Dataset
from .train import Train


@dataclass(frozen=True)
class Entry:
    """A recipe of the catalogue."""

    name: str
    description: str
    """The first sentence of its file's header."""
    dataset: str
    size: int
    """Side of its images, in pixels."""
    student: str
    published: dict[int, float]
    """Published top-1 in % of the recipe's own student, by images a class."""


def find(pattern: str = "*") -> list[str]:
    """Names of the recipes that a pattern like "*/cifar10*" fits, or whose names hold a text without stars.

    Raises ValueError if there is none.
    """
    found = [name for name in names() if fnmatch.fnmatchcase(name, pattern if "*" in pattern else f"*{pattern}*")]
    if not found:
        split_name(pattern.replace("*", ""))  # which names the nearest
        raise ValueError(f"no recipe fits {pattern!r}; `fastcondense recipes` lists them")
    return found


def entry(name: str) -> Entry:
    """What the catalogue says of a recipe."""
    text = file_of(name).read_text()
    tree = merged(layers(text, name, corrected=name.endswith(MARK)))
    data, student = tree.get("dataset", {}), tree.get("train", {}).get("student", Train.student)
    dataset = name.partition("/")[2].removesuffix(MARK)
    of_sizes = {int(ipc): float(top1) for ipc, top1 in published(name).get(student, {}).items()}
    return Entry(name, description(name), dataset, data.get("image_size", Dataset.image_size), student, of_sizes)


def description(name: str) -> str:
    """The first sentence of the header of a recipe's file; of a corrected one, what that is."""
    if name.endswith(MARK):
        return f"{name.removesuffix(MARK)} without its code's known faults."
    lines = (line for line in file_of(name).read_text().split("\n\n")[0].splitlines() if line.startswith("#"))
    header = " ".join(line.lstrip("# ") for line in lines)
    sentence = re.match(r".*?(?<!et al)[.](?= |$)", header)
    return sentence[0] if sentence else header


def resolved(name: str) -> str:
    """A shipped recipe as TOML with every value, and after each where it comes from: a file, one of its tables, or the
    default.

    Raises ValueError for names that are not known.
    """
    stem, ipc = split_name(name)
    found = layers(file_of(stem).read_text(), stem, ipc, corrected=stem.endswith(MARK))
    origins = {key: where for where, tree in found for key, _ in _leaves(tree)} | {"name": "name"}
    lines, table = [f"# {description(stem)}"], ""
    for key, value in _leaves(dataclasses.asdict(load(name))):
        before, _, last = key.rpartition(".")
        if before != table:
            table = before
            lines += ["", f"[{table}]"]
        lines.append(f"{_toml(last, value):<48}  # {origins.get(key, 'default')}")
    return "\n".join(lines) + "\n"


def _leaves(tree: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a tree, a table's own values before those of the tables in it."""
    for key, value in tree.items():
        if not isinstance(value, dict):
            yield where + key, value
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{where}{key}.")


def _toml(key: str, value: Any) -> str:
    """An assignment on one line."""
    first, *others = tomli_w.dumps({key: value}).splitlines()
    return first + " ".join(line.strip() for line in others[:-1]).rstrip(",") + "".join(others[-1:])
