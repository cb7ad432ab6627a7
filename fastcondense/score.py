"""Accuracy of a network on the test split."""

from __future__ import annotations

import torch
from torch import nn

from .distributed import all_sum, rank, world_size
from .real import EvaluationImages, Normalization


@torch.no_grad()
def score(
    net: nn.Module,
    images: EvaluationImages,
    normalize: Normalization,
    batch_size: int = 256,
    *,
    is_shared: bool = False,
) -> dict[str, float]:
    """top1 and top5 in per cent (top5 is top-k of all classes where there are fewer than five).

    is_shared: all ranks call this, and each takes its part of the images; what is right is counted over all of them.
    """
    net.eval()
    mine = (rank(), world_size()) if is_shared else (0, 1)
    right = torch.zeros(3, dtype=torch.int64, device=images.device)  # top-1, top-5, and how many images there are
    for pixels, labels in images.batches(batch_size, *mine):
        logits = net(normalize(pixels))
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        right += torch.stack((best[:, 0].sum(), best.any(1).sum(), torch.full_like(labels, 1).sum()))
    top1, top5, count = (all_sum(right) if is_shared else right).tolist()
    return {"top1": 100 * top1 / count, "top5": 100 * top5 / count}
