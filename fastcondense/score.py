"""Accuracy of a network on the test split."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .real import Normalization


@torch.no_grad()
def score(
    net: nn.Module, squares: Tensor, labels: Tensor, normalize: Normalization, batch_size: int = 256
) -> dict[str, float]:
    """top1 and top5 in per cent (top5 is top-k of all classes where there are fewer than five).

    squares: uint8 [N, 3, S, S], labels: int64 [N]; both may lie on the host, the network anywhere.
    """
    device = next(net.parameters()).device
    net.eval()
    top1 = top5 = torch.zeros((), dtype=torch.int64, device=device)
    for pixels, wanted in zip(squares.split(batch_size), labels.split(batch_size), strict=True):
        logits = net(normalize(pixels.to(device)))
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == wanted.to(device)[:, None]
        top1 = top1 + best[:, 0].sum()
        top5 = top5 + best.any(1).sum()
    return {"top1": 100 * int(top1) / len(labels), "top5": 100 * int(top5) / len(labels)}
