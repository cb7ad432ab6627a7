"""The settings of class means, what frozen backbones should see in condensed images, and of the pyramid of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .bounds import Count, CountOrZero
from .settings import Labels
from .train import Train


@dataclass(frozen=True, kw_only=True)
class Means:
    """Condensed images for frozen backbones: a linear layer on their features should be what real images make it.

    Views of real and of condensed images are those of recover: crop_scale, flip. Teachers are the backbones.
    """

    target: Literal["class", "ridge", "gradient"] = "class"
    """class: the mean feature of a class's views points where that of the real ones does, both seen from the mean of
    all classes; ridge: where the weights point that ridge regression on the real ones gives a linear layer for the
    class. Of several images a class, each is for a part of it, found by k-means. No real image is read meanwhile, and
    classes do not know each other. gradient: the gradient of a new random linear layer is that of a batch of real
    views, as published (LGM); a job has all classes."""
    views: Count = 3
    """Views of each condensed image in an iteration."""
    real_views: Count = 2
    """class and ridge: views of each real image that statistics are taken over."""
    real_batch: Count = 100
    """gradient: real views in an iteration."""


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """Images as sums of layers of noise of 1, 2, 4, ... pixels a side, in decorrelated colours, through a sigmoid."""

    every: CountOrZero = 0
    """Iterations after which the next resolution comes in; 0: no pyramid, images are their pixels."""
    finest: CountOrZero = 0
    """Side of the last resolution, from which images are enlarged; 0: dataset.image_size."""

    def sides(self, image_size: int) -> list[int]:
        """The side of each level: 1, 2, 4, ..., and the finest."""
        finest = self.finest or image_size
        return [1 << k for k in range((finest - 1).bit_length())] + [finest]

    def check(self, image_size: int, iterations: int, conflict: str) -> None:
        """Raises ValueError for levels that never come in or are too fine, and for a `conflict` with other settings."""
        if self.every == 0:
            return
        if conflict:
            raise ValueError(f"recover.pyramid needs {conflict}")
        if self.finest > image_size:
            raise ValueError(f"recover.pyramid.finest is {self.finest}, more than dataset.image_size {image_size}")
        levels = len(self.sides(image_size))
        if iterations <= (needed := (levels - 1) * self.every):
            raise ValueError(
                f"recover.pyramid has {levels} levels, of which the last comes in after {needed} iterations; "
                f"recover.iterations is {iterations}"
            )


def check_frozen(train: Train, labels: Labels, baselines: Sequence[str]) -> None:
    """Raises ValueError for labels, views or baselines that a frozen student cannot have."""
    if not train.frozen:
        return
    is_changed = labels.tile_shuffle > 1 or labels.tile_pick > 1 or labels.augment or labels.rand_augment[0]
    if labels.source != "hard" or labels.mix != "none" or is_changed or train.hard_share:
        raise ValueError("train.frozen needs labels.source hard, labels.mix none, and views of crops and flips alone")
    if soft := [name for name in baselines if name.endswith("_soft") or ":" in name]:
        raise ValueError(f"train.frozen needs evaluate.baselines with hard labels, got {soft[0]!r}")
