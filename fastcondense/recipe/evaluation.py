"""What of a recipe decides its images, its labels, its students and their scores, and what a run remembers of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import tomli_w

from ..files import first_difference
from .recipe import Recipe, from_toml, sha256_of

PARTS = ("ipc", "labels", "train", "evaluate")
"""The parts that decide an evaluation, but not the images."""


def label_parts(recipe: Recipe) -> dict[str, Any]:
    """What decides the labels that students see, beside images and teachers, wherever they come from."""
    parts, train = recipe.parts("ipc", "labels"), recipe.parts("train")["train"]
    source = recipe.labels.source
    parts["labels"] |= {"source": "soft" if source in ("teachers", "stored") else source, "stored": ""}
    names = "epochs batch_size accumulate seeds loss temperature anneal label_classes prefix hard_share".split()
    return parts | {"train": {name: train[name] for name in names}}


def student_parts(recipe: Recipe, *, is_full: bool) -> dict[str, Any]:
    """All that decides a student beside its number; is_full: one on all real images with hard labels."""
    parts = recipe.parts(*dict.fromkeys((*recipe.recover_parts(), "ipc", "labels", "train")))
    del parts["train"]["seeds"]
    return parts | ({"full_epochs": recipe.evaluate.full_epochs} if is_full else {})


def sha256_with(recipe: Recipe, settings: Mapping[str, Any]) -> str:
    """The hash of a recipe that says what `settings` do, and of everything else the same."""
    return sha256_of(recipe.parts() | dict(settings))


def with_evaluation(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with the settings of a result. Raises ValueError if they are no recipe's."""
    source = "the settings of a result"
    try:
        text = tomli_w.dumps(json.loads(json.dumps(dataclasses.asdict(recipe))) | dict(settings))
    except TypeError as error:
        raise ValueError(f"{source}: {error}") from None
    return from_toml(text, source)


def made_otherwise(made_by: Mapping[str, Any], recipe: Recipe) -> str:
    """In what images were made by other settings, those that their manifest tells, than the recipe's: the first, in
    words; empty if in nothing, or if nobody here made them: they are imported."""
    wanted = recipe.parts("seed", "dataset", "method", "recover")
    if not wanted.keys() <= made_by.keys():
        return ""
    return first_difference({key: made_by[key] for key in wanted}, wanted)


def remembered(launch: Recipe, own: Recipe) -> Recipe:
    """What a run remembers after a launch that makes the same images: of names, labels, students and scores what `own`,
    its recipe before, says; of images what made them.
    """
    kept = {key: getattr(own, key) for key in ("name", "labels", "train", "evaluate", "ranking")}
    return dataclasses.replace(launch, ipc=max(launch.ipc, own.ipc), **kept)
