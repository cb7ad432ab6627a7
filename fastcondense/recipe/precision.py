"""Precision "auto": where it stands in a recipe, and what takes its place.

It is settled once, when a run begins; the run's recipe.toml then has no "auto", and whoever goes on takes what it says.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from .recipe import Recipe
from .shared import Arithmetic, Precision

PARTS = ("squeeze", "squeeze.self_supervision", "squeeze.probe", "recover", "labels", "train")
"""Parts of a recipe that have a precision."""


def precisions(recipe: Recipe) -> dict[str, Precision]:
    """The precision of each of PARTS."""
    return {part: _at(recipe, part).precision for part in PARTS}


def with_precisions(recipe: Recipe, wanted: dict[str, Precision]) -> Recipe:
    """The recipe with other precisions of some of PARTS."""
    for part, precision in wanted.items():
        recipe = _replaced(recipe, f"{part}.precision".split("."), precision)
    return recipe


def settled(recipe: Recipe, native: Arithmetic, single: Arithmetic, begun: Recipe | None = None) -> Recipe:
    """The recipe without "auto": with what `begun`, the recipe that the run was begun with, has instead, or `native`.

    native, single: what the device multiplies fastest, and fastest of float32 (devices.py). The latter is what recover
    takes to match gradients, which knows no bf16. Without iterations it takes fp32: such sets depend on no device.
    """
    known = precisions(begun) if begun is not None else {}
    chosen: dict[str, Precision] = dict.fromkeys(PARTS, native)
    if recipe.recover.objective == "gradients":
        chosen["recover"] = single
    if not recipe.recover.iterations:
        chosen["recover"] = "fp32"
    return with_precisions(
        recipe,
        {
            part: chosen[part] if known.get(part, "auto") == "auto" else known[part]
            for part, precision in precisions(recipe).items()
            if precision == "auto"
        },
    )


def _at(recipe: Recipe, part: str) -> Any:
    found: Any = recipe
    for name in part.split("."):
        found = getattr(found, name)
    return found


def _replaced(tree: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    return dataclasses.replace(tree, **{name: _replaced(getattr(tree, name), rest, value) if rest else value})
