"""The arms of the comparison: what students are trained on, condensed images or some real ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..recipe.settings import Labels, Views
from ..run import Run
from ..user_functions import is_own

WHOLE = Views(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)  # the largest central square


@dataclass(frozen=True)
class Arm:
    """An arm of the comparison: what students are trained on, and at which learning rate."""

    images: str = "condensed"
    """condensed, or as many real ones: random, by a rule (herding, medoid, bps) or the best rule (best_subset.py), by
    a class's mean (nearest, aligned: closest.py), or of the user's own function; full: all real ones, with soft labels
    in as many views as the condensed set's, with hard ones as the teacher is trained, on squeeze's views, because a
    condensed set's epochs would be hundreds of passes over all images."""
    labels: Literal["soft", "hard"] = "soft"
    """The teachers' answers to the views, or the classes."""
    views: Literal["recipe", "plain"] = "recipe"
    """plain: the whole image, neither changed nor mixed."""
    lr: float | None = None
    """Learning rate; None: the recipe's."""

    @property
    def name(self) -> str:
        """Name of its folder, and of its scores in files."""
        kind = self.images if is_own(self.images) else f"{self.images}_{self.labels}"
        short = _SHORT.get(kind, kind)
        return short + "_plain" * (self.views == "plain") + ("" if self.lr is None else f"_lr{self.lr}")

    def seen(self, labels: Labels) -> Labels:
        """How the arm's images are seen where condensed ones are as `labels` say: real ones are not made of tiles."""
        if self.images != "condensed":
            labels = replace(labels, tile_pick=1)
        if self.views == "recipe":
            return labels
        return replace(labels, **vars(WHOLE), mix="none", tile_shuffle=1, tile_pick=1, augment=(), rand_augment=(0, 0))


_SHORT = {"condensed_soft": "condensed", "full_hard": "full", "nearest_hard": "nearest", "aligned_hard": "aligned"}
CONDENSED = Arm()
BASELINES = {
    arm.name: arm
    for arm in (
        *(Arm(images, labels) for images in ("random", "herding") for labels in ("soft", "hard")),
        *(Arm(images, "soft") for images in ("medoid", "bps", "best")),
        *(Arm(images, "hard") for images in ("nearest", "aligned")),
        Arm("full", "soft"),
        Arm("full", "hard"),
    )
}


def arms(run: Run) -> tuple[Arm, ...]:
    """The condensed set and the recipe's baselines."""
    return (CONDENSED, *(BASELINES.get(name) or Arm(name) for name in run.recipe.evaluate.baselines))
