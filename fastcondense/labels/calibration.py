"""Other answers of the same soft labels: an annealed temperature, fewer classes, a student's own temperature (LPQLD).

Xiao and He, Soft Label Pruning and Quantization (TPAMI 2026, arXiv 2604.18135), sections III-C to III-E, and its code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..recipe.train import Train, check_fewer

_ABSENT = -1e30
"""A logit whose share of a softmax is 0, and which leaves no NaN behind where that is multiplied by its logarithm."""
_FITTED = 100
"""Temperatures that are tried: 1 / _FITTED, 2 / _FITTED, ... 1."""


def temperature_in(train: Train, epoch: int) -> float:
    """train.temperature as annealed: T gamma^(e // n), but not below the floor; e begins at 1, as published."""
    every, factor, floor = train.anneal
    return max(train.temperature * factor ** ((epoch + 1) // every), floor) if every else train.temperature


def renormalised(logits: Tensor, num_classes: int) -> Tensor:
    """Mean logits [1, B, K] of teachers' logits [E, B, K], of all but the largest num_classes such that softmax has 0.

    Raises ValueError if there are no other classes.
    """
    check_fewer("train.label_classes", num_classes, logits.shape[2])
    mean = logits.float().mean(0, keepdim=True)
    largest, classes = mean.topk(num_classes, 2)
    return torch.full_like(mean, _ABSENT).scatter_(2, classes, largest)


@torch.no_grad()
def fitted_temperature(student: Tensor, label: Tensor) -> Tensor:
    """The t of 0.01, 0.02, ... 1 at which KL(label || softmax(student / t)) is least.

    student: logits [B, K]; label: probabilities [B, K]. A scalar on their device.
    """
    logits = student.float()
    agreement = (label * logits).sum(dtype=torch.float64)
    tried = (k / _FITTED for k in range(1, _FITTED + 1))
    losses = [(logits / t).logsumexp(1).sum(dtype=torch.float64) - agreement / t for t in tried]
    return (torch.stack(losses).argmin() + 1) / _FITTED
