"""How many classes and images a data set has: from the data where they are at hand, else from the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..data import datasets
from ..recipe.recipe import Recipe
from ..user_functions import is_own


@dataclass(frozen=True)
class Extent:
    """Classes, training images and test images of a data set, and who says so."""

    num_classes: int
    num_train: int
    num_test: int
    source: str


def extent(recipe: Recipe, data: Path | None) -> Extent:
    """The extent of the data in `data`, or the recipe's dataset.counts where none are given; digits are always at hand.

    Raises ValueError if neither says it.
    """
    dataset = recipe.dataset
    if data is not None or dataset.name == "digits" or is_own(dataset.name):
        real = datasets.load(dataset, data)
        return Extent(len(real.classes), len(real.train), len(real.test), "the data")
    if not all(dataset.counts):
        raise ValueError(
            "plan needs --data DIR, or --dataset.counts CLASSES TRAIN TEST: the recipe does not say how large the data "
            "set is"
        )
    return Extent(*dataset.counts, "dataset.counts")
