"""The settings that every shipped recipe leaves at their default, and the choices that none takes.

    python scripts/unused_settings.py

A setting is looked at where it is declared: Optimization.momentum is used if squeeze, train or a probe sets it. So are
the choices of a Literal that several settings share.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
import typing
from collections.abc import Iterator
from typing import Any, Literal

from fastcondense.recipe import layers, recipe


def shipped() -> Iterator[recipe.Recipe]:
    """Yields every recipe, once for each student and number of images a class that it has settings for."""
    for name in recipe.names():
        for student, ipc in {("", ""), *_variants(f"{name.removesuffix(f'-{layers.CORRECTED}')}.toml")}:
            yield recipe.load(name + (f"-ipc{ipc}" if ipc else ""), student)


@functools.cache
def _variants(file: str) -> frozenset[tuple[str, str]]:
    """Students and numbers of images a class for which a recipe file, or one that it extends, has a table."""
    tree = tomllib.loads((layers.RECIPES / file).read_text())
    extended = (_variants(f"shared/{name}.toml") for name in tree.get("extends", []))
    tables = {"": tree, **tree.get("by_student", {})}
    own = {(student, ipc) for student, table in tables.items() for ipc in ("", *table.get("by_ipc", {}))}
    return frozenset(own).union(*extended)


def settings(kind: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Yields every setting as the class that declares it and its name, its place in a recipe, and its type."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from settings(hints[field.name], (*path, field.name))
        else:
            owner = next(c for c in reversed(kind.__mro__) if field.name in vars(c).get("__annotations__", {}))
            yield f"{owner.__name__}.{field.name}", (*path, field.name), hints[field.name]


def choices(hint: Any) -> tuple[Any, ...]:
    """What a Literal, alone or in a tuple, can be; empty for other types."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    return next(filter(None, map(choices, typing.get_args(hint))), ())


def unused() -> tuple[list[str], list[str]]:
    """Names of the settings that nobody sets, and "name choice" of the choices that nobody takes, in their order."""
    recipes, plain = list(shipped()), recipe.Recipe()
    is_set: dict[str, bool] = {}
    taken: dict[tuple[Any, ...], set[Any]] = {}
    for name, path, hint in settings(recipe.Recipe):
        default = functools.reduce(getattr, path, plain)
        values = [functools.reduce(getattr, path, one) for one in recipes]
        is_set[name] = is_set.get(name, False) or any(value != default for value in values)
        for value in (default, *values):
            taken.setdefault(choices(hint), set()).update(value if isinstance(value, tuple) else (value,))
    unset = [name for name, is_used in is_set.items() if not is_used]
    named = {name: choices(hint) for name, _, hint in settings(recipe.Recipe) if is_set[name]}
    untaken = [f"{name} {choice}" for name, known in named.items() for choice in known if choice not in taken[known]]
    return unset, untaken


if __name__ == "__main__":
    for found in unused():
        print(*found, "", sep="\n")
