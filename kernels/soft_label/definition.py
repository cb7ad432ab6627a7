"""What the students' losses are, and the factors between their sums and their means."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["kl", "kl_t2", "mse_ce", "ce"]


def soft_label_loss_reference(
    student: Tensor,
    teachers: Tensor | None,
    labels: Tensor,
    partners: Tensor,
    share: Tensor,
    *,
    kind: Kind,
    temperature: float = 1.0,
    ce_weight: float = 0.0,
) -> Tensor:
    """`soft_label_loss` by autograd, in float32, or in float64 for a float64 student."""
    z = student if student.dtype == torch.float64 else student.float()
    log_q = F.log_softmax(z, 1)
    weight = share.to(z.dtype)
    own, other = (log_q.gather(1, index[:, None])[:, 0] for index in (labels, partners))
    entropy = -(weight * own + (1 - weight) * other).mean()
    if teachers is None:
        return entropy
    t = teachers.to(z.dtype).mean(0)
    if kind == "mse_ce":
        return F.mse_loss(z, t) + ce_weight * entropy
    log_p, log_q = F.log_softmax(t / temperature, 1), F.log_softmax(z / temperature, 1)
    divergence = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return divergence * temperature**2 if kind == "kl_t2" else divergence


def scales(kind: Kind, batch: int, temperature: float) -> tuple[float, float]:
    """Factors of the sum of the rows' losses, and of the rows' gradients."""
    power = 2 if kind == "kl_t2" else 0
    return temperature**power / batch, (temperature ** (power - 1) if kind in ("kl", "kl_t2") else 1.0) / batch
