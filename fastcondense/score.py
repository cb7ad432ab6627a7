"""Accuracy of a network on the test split."""

from __future__ import annotations

import torch
from torch import nn

from .real import EvaluationImages, Normalization


@torch.no_grad()
def score(
    net: nn.Module, images: EvaluationImages, normalize: Normalization, batch_size: int = 256
) -> dict[str, float]:
    """top1 and top5 in per cent (top5 is top-k of all classes where there are fewer than five)."""
    net.eval()
    count = 0
    top1 = top5 = torch.zeros((), dtype=torch.int64, device=images.device)
    for pixels, labels in images.batches(batch_size):
        logits = net(normalize(pixels))
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        count += len(labels)
        top1 = top1 + best[:, 0].sum()
        top5 = top5 + best.any(1).sum()
    return {"top1": 100 * int(top1) / count, "top5": 100 * int(top5) / count}
