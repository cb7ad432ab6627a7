"""What is written of students: their files, curves of sizes and DD-Ranking's scores, as types (records.py)."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, TypedDict

from msgspec import Meta

from .records import Digits, Natural, NumWorkers, Percent, Score


class Confusion(TypedDict):
    """Test images a class, those that were named right, and frequent wrong answers: class, answer, count."""

    images: list[Natural]
    right: list[Natural]
    confused: list[tuple[Natural, Natural, Natural]]


class Epoch(TypedDict):
    """An evaluation of a student."""

    epoch: float
    loss: float
    top1: Percent
    top5: Percent
    seconds: float


class Trained(TypedDict):
    """Seconds."""

    train: float
    evaluate: float


class StudentFile(TypedDict):
    """student.json."""

    history: Annotated[list[Epoch], Meta(min_length=1)]
    seconds: Trained
    classes: NotRequired[Confusion | None]
    workers: NotRequired[NumWorkers]


def check_confusion(table: Confusion, num_classes: int, source: object) -> None:
    """Raises ValueError that names the source if a table is not of so many classes, or counts more than there is."""
    images, right, confused = table["images"], table["right"], table["confused"]
    if len(images) != num_classes or len(right) != num_classes:
        raise ValueError(f"{source} is damaged: field classes: expected {num_classes} numbers, one a class")
    answers = [(label, label, count) for label, count in enumerate(right)] + confused
    if any(max(label, answer) >= num_classes or count > images[label] for label, answer, count in answers):
        raise ValueError(f"{source} is damaged: field classes: there are no such answers of {num_classes} classes")


class Choice(TypedDict):
    """choice.json: the rule of the best real subset, and top-1 in per cent of each rule's student on so many images."""

    chosen: Literal["herding", "medoid", "bps"]
    top1: dict[str, Percent]
    images: Natural


class SizeCurve(TypedDict):
    """curve.json."""

    student: str
    epochs: Natural
    sizes: list[Natural]
    top1_last: dict[str, dict[Digits, Score]]


class RobustScore(TypedDict):
    """Points, or a score in [0, 1]."""

    mean: float
    std: float


class RobustScores(TypedDict):
    hard_label_recovery: RobustScore
    improvement_over_random: RobustScore
    improvement_over_random_plain: RobustScore
    label_robust_score: RobustScore
    augmentation_robust_score: RobustScore


class RankedEpochs(TypedDict):
    top1_last: RobustScores
    top1_best: RobustScores


class RankedScores(TypedDict):
    """ranking.json, of which the report shows the scores."""

    scores: RankedEpochs
