"""One evaluation for any images, `--protocol rd3`: a table then compares images, and not recipes."""

from __future__ import annotations

import dataclasses
import difflib

from .recipe import Recipe, from_toml
from .train import Train

PROTOCOLS = ("rd3",)
"""Names of the protocols; each is a shared recipe file, and one of -large for images of 128 pixels and more."""
_LARGE = 128
_DIGITS = ("digits", "svhn")  # a mirrored digit is none
_KEPT = ("student", "seeds", "prefix", "evaluate_every", "precision", "sync_batch_norm")  # of train: the launch's


def with_protocol(recipe: Recipe, name: str) -> Recipe:
    """The recipe's images with the labels and students of a protocol; teachers of squeeze, and so images, stay.

    Its students, seeds, baselines and precisions stay too. Raises ValueError for an unknown protocol, and for a recipe
    without teachers.
    """
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, 1, 0.0)[0]
        raise ValueError(f"there is no protocol {name!r}; the nearest is {near!r}")
    file = f"{name}-large" if recipe.dataset.image_size >= _LARGE else name
    text = f'extends = ["protocol/{file}"]'
    protocol = from_toml(text, f"protocol {name}", recipe.ipc, student=recipe.train.student)
    labels = dataclasses.replace(
        protocol.labels,
        teachers=(_teacher(recipe, name),),
        flip=0.0 if recipe.dataset.name in _DIGITS else protocol.labels.flip,
        precision=recipe.labels.precision,
    )
    train: Train = dataclasses.replace(protocol.train, **{key: getattr(recipe.train, key) for key in _KEPT})
    return dataclasses.replace(recipe, labels=labels, train=train).check()


def _teacher(recipe: Recipe, name: str) -> str:
    """The ResNet-18 among the recipe's teachers, or the first of them."""
    teachers = recipe.squeeze.teachers
    if not teachers:
        raise ValueError(f"protocol {name} needs a teacher that labels, and the recipe has none (squeeze.teachers)")
    return next((teacher for teacher in teachers if teacher.endswith("/resnet18")), teachers[0])
