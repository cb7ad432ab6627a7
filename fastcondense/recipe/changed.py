"""A recipe with some settings changed, as a program says them: by dotted names, or as tables."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import numpy as np
import tomli_w

from .recipe import Recipe, from_toml
from .unread import check_read

_DEEPEST = 9  # tables around a setting


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, those of tables too, by dotted names; numbers of numpy become Python's."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value and key.count(".") < _DEEPEST:
            found |= flat({f"{key}.{name}": inner for name, inner in value.items()})
        else:
            found[key] = value.item() if isinstance(value, np.generic) else value
    return found


def changed(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with other values of the settings, by dotted names.

    Raises ValueError for a setting that there is not, with the nearest name, for a value that no run could mean, and
    for one that is new and not read beside the others.
    """
    tree = dataclasses.asdict(recipe)
    for key, value in settings.items():
        *parts, last = key.split(".")
        table: Any = tree
        for part in parts:
            table = table.setdefault(part, {}) if isinstance(table, dict) else None
        if value is None or not isinstance(table, dict) or len(parts) > _DEEPEST:
            raise ValueError(f"recipe {recipe.name}: {key} cannot be {value!r}")
        if value == {} and isinstance(table.get(last), dict):
            continue
        table[last] = os.fspath(value) if isinstance(value, os.PathLike) else value
    try:
        text = tomli_w.dumps(tree)
    except TypeError as error:
        raise ValueError(f"recipe {recipe.name}: a setting is of no type that a recipe has: {error}") from None
    made = from_toml(text, f"recipe {recipe.name}")
    check_read(made, [key for key in settings if attrgetter(key)(made) != attrgetter(key)(recipe)])
    return made
