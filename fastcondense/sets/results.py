"""What evaluations of a condensed set have found: a file each in results/ of the run's folder, which stays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..files import slug, write_json
from ..loaders.reading import check_values, count_values, naming, read_file
from ..recipe.evaluation import PARTS, sha256_with
from ..recipe.recipe import Recipe
from ..records import Result, check_result, parse_json
from .imported import read_origin

_MOST = 10_000
"""Results of a run that are read."""


def keep(out: Path, kind: str, recipe: Recipe, tree: Mapping[str, Any], made_by: str) -> Path:
    """Writes results/<student>-<hash>.json, or results/<kind>/ for another kind than "result", and <kind>.json, the
    latest of them.

    made_by: hash of all settings that decide it; the images, if they are imported, count too. Returns the former.
    """
    origin = read_origin(out / "condensed")
    names = [slug(recipe.train.student), made_by[:8], *([origin["sha256"][:8]] if origin is not None else [])]
    path = out / "results" / ("" if kind == "result" else kind) / f"{'-'.join(names)}.json"
    write_json(path, tree)
    write_json(out / f"{kind}.json", tree)
    return path


def read_results(out: Path, recipe: Recipe) -> list[Result]:
    """All evaluations of the images that are in the run's folder and that `recipe` made: its own first, the others by
    student. Those of other images, which were there before, are left out.
    """
    origin = read_origin(out / "condensed")
    paths = [path for path in sorted(out.glob("results/*.json")) if path.is_file()][:_MOST]
    size = values = 0
    found = []
    for path in paths:
        text = read_file(path)
        size, values = size + len(text), values + count_values(text)
        with naming(path, "{path} is damaged: with those before, {error}"):
            check_values(size, values)  # of all together
        found.append(check_result(parse_json(text, path), path))
    known = origin["sha256"] if origin is not None else None
    return in_order(
        [one for one in found if is_of(one, recipe) and one.get("origin", {}).get("sha256") == known], recipe
    )


def is_of(result: Result, recipe: Recipe) -> bool:
    """Whether the result is an evaluation of the images that `recipe` makes: all other settings are the same."""
    settings = result["settings"]
    return settings.keys() == set(PARTS) and sha256_with(recipe, settings) == result["recipe_sha256"]


def in_order(results: Iterable[Result], recipe: Recipe) -> list[Result]:
    """The recipe's own result first, then by student, epochs and hash."""
    own = recipe.sha256()

    def place(result: Result) -> tuple[Any, ...]:
        sha256 = result["recipe_sha256"]
        return sha256 != own, result["student"], result["epochs"], sha256

    return sorted(results, key=place)
