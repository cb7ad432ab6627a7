"""The gate: on a few real images a teacher must beat chance, in the data set's class order and no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import bdtrc
from torch import Tensor

from ..data.real import Normalization
from ..recipe.settings import Dataset
from ..rng import Stream
from ..teachers.teacher import Teacher

_SURE = 1e-3
"""Probability of a result by chance, below which the explanation by chance is given up."""
_LIKELY = 0.05
"""Probability of a group of classes by chance, below which it is named as moved once an order is given up."""
_OTHER_INPUTS = {
    "pixels in [0, 1] without normalisation": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "pixels in [0, 255]": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "pixels in [-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "ImageNet's mean and deviation": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR's mean and deviation": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}
_TRIED = 200
"""Images that a teacher sees in other preprocessings."""
_NAMED = 20
"""Moved classes that a message names."""


# --- class order -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """The fit of answers to labels: as they are, and in the order that fits them best."""

    hits: int
    """Images that are named right as they are."""
    best: list[int]
    """The output of each class in the best order."""
    best_hits: int
    """Images that are named right then."""
    moved: tuple[int, ...]
    """The classes that clearly are other outputs, by a test on images that did not choose the order; mostly none."""

    def told(self, classes: Sequence[str], names: Sequence[str], verb: str) -> str:
        """The moved classes and what they are, names being those of the outputs."""
        pairs = [f"{classes[k]!r} {verb} {names[self.best[k]]!r}" for k in self.moved]
        return ", ".join(pairs[:_NAMED]) + f", and {len(pairs) - _NAMED} more" * (len(pairs) > _NAMED)


def judge(labels: Tensor, predicted: Tensor, outputs: Sequence[int], num_outputs: int, is_right: Tensor) -> Order:
    """The best assignment of outputs to classes, and the classes for which it is clearly better than `outputs`.

    labels: int64 [N]; predicted: int64 [N], among all outputs; outputs: the output of each class; is_right: bool [N],
    whether the image is named right among the outputs of the classes.

    An assignment fits the noise of the images that chose it. So each half of a class's images is judged by the one that
    the other half chose: a sign test on images that one of both orders alone names right, of all classes, and of those
    that change places with each other, at 1e-3 over the number of such groups. Where classes have one image, what is
    gained is compared with random mistakes instead.
    """
    y, answers = labels.numpy(), predicted.numpy()
    own, right = np.asarray(outputs), is_right.numpy()
    best = _assign(y, answers, own, num_outputs)
    rank = np.empty(len(y), dtype=np.int64)  # of an image within its class
    for k in range(len(own)):
        mine = np.flatnonzero(y == k)
        rank[mine] = np.arange(len(mine))
    if rank.max(initial=0) == 0:
        moved = _moved_by_one_image(y, answers, own, best, num_outputs)
    else:
        is_even = rank % 2 == 0
        halves = [_assign(y[half], answers[half], own, num_outputs) for half in (is_even, ~is_even)]
        gained = np.where(is_even, halves[1][y], halves[0][y]) == answers
        moved = _moved_by_halves(y, gained & ~right, right & ~gained, own, best)
    hits = int(right.sum())
    return Order(hits, best.tolist(), int((best[y] == answers).sum()), tuple(moved))


def _assign(labels: np.ndarray, answers: np.ndarray, own: np.ndarray, num_outputs: int) -> np.ndarray:
    """The output of each class so that most answers are right; of equally good orders the one nearest to `own`."""
    from scipy.optimize import linear_sum_assignment  # a part of scipy that few runs need

    counts = np.zeros((len(own), num_outputs))
    np.add.at(counts, (labels, answers), 1)
    counts[np.arange(len(own)), own] += 0.5 / len(own)
    return linear_sum_assignment(counts, maximize=True)[1]


def _moved_by_halves(
    labels: np.ndarray, gained: np.ndarray, lost: np.ndarray, own: np.ndarray, best: np.ndarray
) -> list[int]:
    groups = _groups(own, best)
    counts = [[int(part[np.isin(labels, group)].sum()) for part in (gained, lost)] for group in groups]
    chances = [_by_chance(*pair) for pair in counts]
    # groups were chosen by all images, so of their sum nothing follows, but of the sum over all classes
    if not groups or min(min(chances) * len(groups), _by_chance(int(gained.sum()), int(lost.sum()))) >= _SURE:
        return []
    likely = [group for group, chance in zip(groups, chances, strict=True) if chance < _LIKELY]
    # of two images a class no single exchange is likely, but all of them together are: then those that gain are named
    named = likely or [group for group, (gains, losses) in zip(groups, counts, strict=True) if gains > losses]
    return sorted(k for group in named for k in group)


def _by_chance(gains: int, losses: int) -> float:
    """Probability of so many gains or more where gain and loss are equally likely."""
    return float(bdtrc(gains - 1, gains + losses, 0.5)) if gains > losses else 1.0


def _groups(own: np.ndarray, best: np.ndarray) -> list[list[int]]:
    """The classes whose outputs differ between two orders, those that pass outputs on to each other together."""
    from scipy.sparse import coo_array  # a part of scipy that few runs need
    from scipy.sparse.csgraph import connected_components

    class_of = {output: k for k, output in enumerate(own.tolist())}
    moved = np.flatnonzero(own != best)
    passed = np.array([(k, class_of.get(output, k)) for k, output in zip(moved, best[moved].tolist(), strict=True)])
    if not len(moved):
        return []
    graph = coo_array((np.ones(len(passed)), passed.T), shape=(len(own), len(own)))
    group_of = connected_components(graph, directed=False)[1][moved]
    return [moved[group_of == group].tolist() for group in np.unique(group_of)]


def _moved_by_one_image(
    labels: np.ndarray, answers: np.ndarray, own: np.ndarray, best: np.ndarray, num_outputs: int
) -> list[int]:
    """Classes of one image each that are other outputs: if more fit the best order than mistakes at random would."""
    is_wrong = own[labels] != answers
    if not is_wrong.any():
        return []
    gain = int((best[labels] == answers).sum() - (~is_wrong).sum())
    draws = int(np.clip(2_000_000 // len(own) ** 2, 20, 2000))
    uniform = Stream(0, "gate/mistakes").uniform(np.arange(draws * len(labels)))[0].reshape(draws, len(labels))
    gains = []
    for row in uniform:
        other = (own[labels] + 1 + (row * (num_outputs - 1)).astype(np.int64)) % num_outputs
        made = np.where(is_wrong, other, answers)
        gains.append(int((_assign(labels, made, own, num_outputs)[labels] == made).sum() - (~is_wrong).sum()))
    if draws >= 1 / _SURE:
        is_clear = np.mean(np.array(gains) >= gain) < _SURE
    else:
        is_clear = gain > np.mean(gains) + 5 * np.std(gains)
    return [k for k in range(len(own)) if best[k] != own[k]] if is_clear else []


# --- chance ----------------------------------------------------------------------------------------------------------


def is_chance(hits: int, count: int, num_classes: int) -> bool:
    """Whether guessing explains so many of `count` images right: with p > 0.001, or p > 0.05 where images are so few
    that hardly any result would be less likely. All right is never chance.
    """
    needed = _SURE if count * np.log10(num_classes) > 6 else 0.05
    return hits < count and bool(bdtrc(hits - 1, count, 1 / num_classes) > needed)


# --- a teacher -------------------------------------------------------------------------------------------------------


def check_gate(
    teacher: Teacher,
    pixels: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    dataset: Dataset,
    device: torch.device,
    *,
    is_trained: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> float:
    """Accuracy of the teacher on a few real images. Raises ValueError if chance explains it, or if another order of its
    outputs is clearly better at whatever accuracy; the message names the likeliest cause.

    pixels: uint8 [N, 3, S, S]; labels: int64 [N]. is_trained: it was trained on these labels, so that order and
    preprocessing are right. say: takes what should be known of a teacher that passes.
    """

    def logits(normalize: Normalization, part: Tensor, channels: Sequence[int] = (0, 1, 2)) -> Tensor:
        with torch.no_grad():
            parts = [teacher.see(normalize(some[:, list(channels)].to(device))).cpu() for some in part.split(64)]
        return torch.cat(parts)

    outputs, num_classes = teacher.outputs.tolist(), len(teacher.outputs)
    own = teacher.normalization or Normalization.of(dataset, device)
    answers = logits(own, pixels)
    is_right = answers[:, outputs].argmax(1) == labels
    order = judge(labels, answers.argmax(1), outputs, teacher.num_outputs, is_right)
    if order.moved and not is_trained:
        raise ValueError(_refusal(teacher, order, len(labels), classes))
    hits, found = order.hits, ("", 0, 0)
    if not is_trained or is_chance(hits, len(labels), num_classes):
        some = torch.from_numpy(Stream(0, "gate/tried").permutation(len(labels))[:_TRIED].astype(np.int64))
        tried = {name: (_normalization(mean, std, device), (0, 1, 2)) for name, (mean, std) in _OTHER_INPUTS.items()}
        tried["blue, green, red channels"] = own, (2, 1, 0)
        found = _likelier(
            {
                name: logits(how, pixels[some], rgb)[:, outputs].argmax(1) == labels[some]
                for name, (how, rgb) in tried.items()
            },
            is_right[some],
        )
    name, better, as_given = found
    count = min(_TRIED, len(labels))
    advice = f"With {name} it has {100 * better / count:.0f} %"
    if not is_chance(hits, len(labels), num_classes):
        if name:
            say(
                f"teacher {teacher.name}: is its preprocessing another? {advice}, as it is {100 * as_given / count:.0f}"
                " % (squeeze.normalization)"
            )
        return hits / len(labels)
    message = f"teacher {teacher.name} is at chance: {hits} of {len(labels)} real images of {num_classes} classes right"
    if name and not is_chance(better, count, num_classes):
        raise ValueError(f"{message}. Likeliest cause: preprocessing. {advice} (squeeze.normalization)")
    raise ValueError(
        f"{message}, and {order.best_hits} in the class order that fits best, which proves nothing. No usual "
        "preprocessing mends it: untrained or wrong weights, or wrong squeeze.classes_file"
    )


def _normalization(mean: Sequence[float], std: Sequence[float], device: torch.device) -> Normalization:
    return Normalization.of(Dataset(mean=(mean[0], mean[1], mean[2]), std=(std[0], std[1], std[2])), device)


def _likelier(right: dict[str, Tensor], own: Tensor) -> tuple[str, int, int]:
    """The preprocessing under which most images are named right, how many, and how many are as it is.

    No name if it is not clearly better than `own`.
    """
    name = max(right, key=lambda name: int(right[name].sum()))
    gains, losses = int((right[name] & ~own).sum()), int((own & ~right[name]).sum())
    is_clear = _by_chance(gains, losses) * len(right) < _SURE
    return name if is_clear else "", int(right[name].sum()), int(own.sum())


def _refusal(teacher: Teacher, order: Order, count: int, classes: Sequence[str]) -> str:
    outputs = teacher.outputs.tolist()
    names = [f"output {k}" for k in range(teacher.num_outputs)]
    for k, output in enumerate(outputs):
        names[output] = classes[k]
    numbers = sorted((name for name in classes if name.isdecimal()), key=int)
    is_numeric = len(numbers) == len(classes) and all(numbers[order.best[k]] == classes[k] for k in order.moved)
    likely = "its outputs are in the order of numbers, the folders in that of text" if is_numeric else "class order"
    return (
        f"teacher {teacher.name} has its outputs in another order than the data set its classes: it names {order.hits} "
        f"of {count} real images right, and {order.best_hits} in the order that fits best, which moves "
        f"{len(order.moved)} of {len(classes)} classes ({order.told(classes, names, 'is named')}). Likeliest "
        f"cause: {likely}; name its outputs in their order, one a line, in squeeze.classes_file"
    )
