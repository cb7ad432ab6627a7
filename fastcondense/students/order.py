"""The order of a class's images: the first n are the set of IPC n, chosen to be good alone (spec 5.6, mode O)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.real import Normalization
from ..recipe.recover import Recover
from ..sets.condensed import CondensedSet
from ..statistics.matching import layer_weights
from ..teachers.teacher import Teacher

_BATCH = 64


def order_slots(
    condensed: CondensedSet, teachers: Sequence[Teacher], recover: Recover, normalize: Normalization
) -> Tensor:
    """The slots of each class in an order in which every prefix matches the teachers' targets: int64 [classes, ipc].

    Greedy: the next image is the one with which the moments of all images so far are nearest to the targets, those of
    the class if teachers have them, else the data set's; the distance is recover's, summed over teachers.
    """
    device = normalize.gain.device
    ranks = torch.empty(condensed.images.shape[:2], dtype=torch.int64)
    for label, images in enumerate(condensed.images):
        measured = [_image_moments(teacher, normalize, images.to(device)) for teacher in teachers]
        wanted = [_targets(teacher, label) for teacher in teachers]
        weights = [_weights(teacher, recover) for teacher in teachers]
        ranks[label] = _greedy(measured, wanted, weights, recover.distance == "squared")
    return ranks


def _image_moments(teacher: Teacher, normalize: Normalization, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Means and variances of each vector of the teacher's layers, float64 [N, length] on the host."""
    parts = [teacher.image_moments(normalize(part)) for part in images.split(_BATCH)]
    layers = [zip(*layer, strict=True) for layer in zip(*parts, strict=True)]
    joined = [torch.cat(vectors).double().cpu() for layer in layers for vectors in layer]
    return list(zip(joined[::2], joined[1::2], strict=True))


def _targets(teacher: Teacher, label: int) -> list[tuple[Tensor, Tensor]]:
    has_classes = all(layer.name in teacher.class_targets for layer in teacher.layers)
    moments = teacher.category_targets(torch.tensor([label])) if has_classes else teacher.matched_targets()
    vectors = [vector.double().cpu() for layer in moments for vector in layer]
    return list(zip(vectors[::2], vectors[1::2], strict=True))


def _weights(teacher: Teacher, recover: Recover) -> list[float]:
    """One for each pair of vectors: its layer's."""
    of_layers = layer_weights(len(teacher.layers), recover.first_layer_weight).tolist()
    return [weight for layer, weight in zip(teacher.layers, of_layers, strict=True) for _ in layer.parts]


def _greedy(
    measured: list[list[tuple[Tensor, Tensor]]],
    wanted: list[list[tuple[Tensor, Tensor]]],
    weights: list[list[float]],
    is_squared: bool,
) -> Tensor:
    """The order of N images, int64 [N]; the arguments hold an entry for each teacher."""
    pairs = [
        (weight, means, variances, *target)
        for moments, targets, of_teacher in zip(measured, wanted, weights, strict=True)
        for (means, variances), target, weight in zip(moments, targets, of_teacher, strict=True)
    ]
    left, chosen = torch.arange(len(pairs[0][1])), list[int]()
    sums = [(torch.zeros_like(mean), torch.zeros_like(var)) for *_, mean, var in pairs]  # of means, of second moments
    while len(left):
        distances = torch.zeros(len(left), dtype=torch.float64)
        for (weight, means, variances, wanted_mean, wanted_var), (first, second) in zip(pairs, sums, strict=True):
            mean = (first + means[left]) / (len(chosen) + 1)
            var = (second + variances[left] + means[left] ** 2) / (len(chosen) + 1) - mean**2
            for difference in (mean - wanted_mean, var - wanted_var):
                squares = difference.square().sum(1)
                distances += weight * (squares if is_squared else squares.sqrt())
        best = int(left[distances.argmin()])
        for (_, means, variances, *_), (first, second) in zip(pairs, sums, strict=True):
            first += means[best]
            second += variances[best] + means[best] ** 2
        chosen.append(best)
        left = left[left != best]
    return torch.tensor(chosen)
