"""The settings of students (`train`); their docstrings are the command line's help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .bounds import HOW, Count, CountOrZero, Decay, NonNegativeFloat, PositiveFloat, ShareAboveZero, Within
from .optimization import Optimization
from .unread import ReadIf

Annealing = tuple[CountOrZero, ShareAboveZero, PositiveFloat]


@dataclass(frozen=True, kw_only=True)
class Train(Optimization):
    """Students on the condensed set."""

    student: str = "torchvision/resnet18"
    """Network that is trained, named as squeeze.teachers are."""
    loss: Literal["kl", "kl_t2", "mse_ce"] = "kl"
    """kl: KL(teacher || student) at `temperature`; kl_t2: times its square; mse_ce: MSE of logits + ce_weight * CE."""
    temperature: Annotated[PositiveFloat, ReadIf("loss", ("kl", "kl_t2"))] = 20.0
    """What logits are divided by before their softmax, in kl and kl_t2."""
    anneal: Annotated[Annealing, ReadIf("loss", ("kl", "kl_t2"))] = (0, 1.0, 1.0)
    """Epochs after which the temperature is multiplied by the second number, again and again, but not below the third:
    other answers of the same labels (LPQLD's knowledge reuse); 0: it stays."""
    student_temperature: Annotated[Literal["same", "fitted"], ReadIf("loss", ("kl", "kl_t2"))] = "same"
    """What the student's logits are divided by, where the teachers' are by the temperature. fitted: that of 0.01, 0.02
    to 1 at which they agree best on the views that are seen together (LPQLD's calibrated alignment)."""
    label_classes: Annotated[CountOrZero, ReadIf("loss", ("kl", "kl_t2"))] = 0
    """Classes that a soft label is the softmax of, those of the largest logits; all others have no share of it (LPQLD's
    marginal renormalisation). 0: all classes."""
    ce_weight: Annotated[NonNegativeFloat, ReadIf("loss", ("mse_ce",))] = 0.1
    """Weight of the cross-entropy in mse_ce."""
    ce_labels: Annotated[Literal["mixed", "own"], ReadIf("loss", ("mse_ce",))] = "mixed"
    """mse_ce's classes of a mixed view: both by their shares, or the base image's alone as published."""
    hard_share: Decay = 0.0
    """Share of the epochs, in their middle, in which soft labels give way to the classes, on new views where there is
    a labels.pool (HALD's soft, hard, soft)."""
    hard_smoothing: Annotated[Decay, ReadIf("hard_share")] = 0.0
    """Share of the label that all classes have alike in those epochs; HALD's is 0.8."""
    seeds: Annotated[int, Within(1, 10_000)] = 1
    """Students, each from another seed."""
    frozen: bool = False
    """Whether the student is the teacher of that name, frozen, with a new linear layer that learns the classes from
    features of views, which are made once: a linear probe."""
    frozen_views: Annotated[Count, ReadIf("frozen")] = 50
    """Views of each image that a frozen student learns from; an epoch is all of them. Of all real images, 2."""
    sync_batch_norm: Annotated[bool, HOW] = False
    """Whether BatchNorms see a batch of all ranks, as one rank's do, instead of each its share; with several
    ranks, on GPUs."""
    prefix: CountOrZero = 0
    """Images of a class that are trained on, the first by rank, and as many random real ones; 0: all."""

    @property
    def hard_epochs(self) -> range:
        """Those of hard_share: as many soft ones stand before as behind, or one less."""
        hard = int(self.hard_share * self.epochs + 1e-6)  # a share's rounding error must not cost an epoch
        first = (self.epochs - hard) // 2
        return range(first, first + hard)

    def check(self, top_k: int) -> None:
        """Raises ValueError if soft labels that keep the top_k largest logits (0: all) cannot be taken as this says."""
        every, _, floor = self.anneal
        if every and floor > self.temperature:
            raise ValueError(f"train.anneal ends at {floor}, above train.temperature {self.temperature}")
        if top_k and self.label_classes > top_k:
            raise ValueError(f"train.label_classes is {self.label_classes}, more than labels.top_k {top_k} logits")
        if top_k and every and not self.label_classes:
            raise ValueError(
                "train.anneal needs train.label_classes where there is a labels.top_k: what other classes share is "
                "stored for one temperature"
            )


def check_fewer(name: str, count: int, num_classes: int) -> None:
    """Raises ValueError for a setting of all classes or more."""
    if count >= num_classes:
        raise ValueError(f"{name} must be less than the {num_classes} classes, got {count}; 0 takes all of them")
