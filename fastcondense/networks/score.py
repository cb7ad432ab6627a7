"""Accuracy of a network on the test split, of all classes and of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..workers.distributed import all_sum, rank, world_size


class Labelled(Protocol):
    """What is scored, batch by batch, on a device: images, or features of them, and labels int64 [B]."""

    @property
    def device(self) -> torch.device: ...
    def batches(self, batch_size: int, rank: int = 0, world: int = 1, /) -> Iterator[tuple[Tensor, Tensor]]: ...


_CACHED = 1 << 22
"""Input values that a CPU sees together: 27 images of 224 pixels. 256 of them take 1.8 GB more, and longer."""


@torch.no_grad()
def score(
    net: nn.Module,
    images: Labelled,
    normalize: Callable[[Tensor], Tensor],
    batch_size: int = 256,
    *,
    is_shared: bool = False,
    answers: Tensor | None = None,
) -> dict[str, float]:
    """top1 and top5 in per cent (top5 is top-k of all classes where there are fewer than five).

    is_shared: all ranks call this, and each takes its part of the images; what is right is counted over all of them.
    answers: int64 [classes, classes], to which a one is added for every image: in its class's row, at the answer.
    """
    net.eval()
    mine = (rank(), world_size()) if is_shared else (0, 1)
    right = torch.zeros(3, dtype=torch.int64, device=images.device)  # top-1, top-5, and how many images there are
    for pixels, labels in images.batches(batch_size, *mine):
        logits = torch.cat([net(normalize(part)) for part in _parts(pixels)])
        named = logits.topk(min(5, logits.shape[1]), dim=1).indices
        best = named == labels[:, None]
        right += torch.stack((best[:, 0].sum(), best.any(1).sum(), torch.full_like(labels, 1).sum()))
        if answers is not None:
            answers.index_put_((labels, named[:, 0]), torch.ones_like(labels), accumulate=True)
    if is_shared:
        all_sum(right)
        if answers is not None:
            all_sum(answers)
    top1, top5, count = right.tolist()
    return {"top1": 100 * top1 / count, "top5": 100 * top5 / count}


def _parts(pixels: Tensor) -> tuple[Tensor, ...]:
    """A batch as a device sees it at once: as a GPU's, whole."""
    return (pixels,) if pixels.is_cuda else pixels.split(max(1, _CACHED // max(1, pixels.shape[1:].numel())))


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
