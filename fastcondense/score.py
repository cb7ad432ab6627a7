"""Accuracy of a network on the test split, of all classes and of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .real import EvaluationImages, Normalization


@torch.no_grad()
def score(
    net: nn.Module,
    images: EvaluationImages,
    normalize: Normalization,
    batch_size: int = 256,
    answers: Tensor | None = None,
) -> dict[str, float]:
    """top1 and top5 in per cent (top5 is top-k of all classes where there are fewer than five).

    answers: int64 [classes, classes], to which a one is added for every image: in its class's row, at the answer.
    """
    net.eval()
    count = 0
    top1 = top5 = torch.zeros((), dtype=torch.int64, device=images.device)
    for pixels, labels in images.batches(batch_size):
        logits = net(normalize(pixels))
        named = logits.topk(min(5, logits.shape[1]), dim=1).indices
        best = named == labels[:, None]
        if answers is not None:
            answers.index_put_((labels, named[:, 0]), torch.ones_like(labels), accumulate=True)
        count += len(labels)
        top1 = top1 + best[:, 0].sum()
        top5 = top5 + best.any(1).sum()
    return {"top1": 100 * int(top1) / count, "top5": 100 * int(top5) / count}


def per_class(answers: Tensor, num_confused: int = 3) -> dict[str, Any]:
    """How many test images a class has, how many were named right, and its most frequent wrong answers.

    answers: as `score` counts them. Wrong answers: [class, answer, count], at most `num_confused` a class.
    """
    counts = answers.cpu()
    wrong = counts.clone().fill_diagonal_(0)
    often = wrong.topk(min(num_confused, len(counts)), dim=1)
    confused = [
        [label, answer, count]
        for label, (row, answers_of_row) in enumerate(zip(often.values.tolist(), often.indices.tolist(), strict=True))
        for answer, count in zip(answers_of_row, row, strict=True)
        if count
    ]
    return {"images": counts.sum(1).tolist(), "right": counts.diagonal().tolist(), "confused": confused}
