"""The students' losses: soft labels of several teachers, hard labels that CutMix or mixup mixed; loss and gradient."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["kl", "kl_t2", "mse_ce", "ce"]


def soft_label_loss(
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
    """A scalar, differentiable in the student's logits; with t the mean of the teachers' logits and tau = temperature:

    kl: KL(softmax(t / tau) || softmax(student / tau)), mean over the batch (SRe2L, without tau^2; Hinton et al.,
    arXiv:1503.02531); kl_t2: tau^2 times that; mse_ce: mean of (student - t)^2 over batch and classes, plus ce_weight
    times ce (G-VBSM, EDC); ce: cross-entropy with share * onehot(labels) + (1 - share) * onehot(partners), mean.

    student: [B, K]; teachers: [E, B, K], None for ce only; labels, partners: int64 [B]; share: float32 [B]. The result
    is float32 (float64 for float64 students). One pass makes loss and gradient, which is kept in the student's dtype
    and without the 1 / B, so that fp16 can hold it. Raises ValueError for other shapes or kinds and, on the CPU only
    (no sync), for a label that is no class; on the GPU such a label makes the loss NaN.
    """
    if student.dim() != 2 or kind not in get_args(Kind):
        raise ValueError(f"soft_label_loss needs logits [B, K] and a kind, got {tuple(student.shape)} and {kind!r}")
    if (teachers is None) != (kind == "ce"):
        raise ValueError(f"soft_label_loss of kind {kind!r} needs {'no ' * (kind == 'ce')}teachers")
    if teachers is not None and (teachers.dim() != 3 or teachers.shape[1:] != student.shape or not len(teachers)):
        raise ValueError(
            f"soft_label_loss needs teachers of shape (E, *{tuple(student.shape)}), got {tuple(teachers.shape)}"
        )
    for name, vector in (("labels", labels), ("partners", partners), ("share", share)):
        if vector.shape != student.shape[:1]:
            raise ValueError(f"soft_label_loss needs {name} of shape {student.shape[:1]}, got {tuple(vector.shape)}")
        if student.device.type == "cpu" and name != "share" and vector.numel():
            if not 0 <= int(vector.min()) <= int(vector.max()) < student.shape[1]:
                raise ValueError(f"soft_label_loss needs {name} in [0, {student.shape[1]})")
    hard = (labels, partners, share)
    if student.is_cuda and student.dtype != torch.float64:
        from .soft_label_triton import SoftLabelLoss

        return SoftLabelLoss.apply(student, teachers, *hard, kind, temperature, ce_weight)
    if student.dtype == torch.float32:
        from .soft_label_numba import SoftLabelLoss as OnCPU

        return OnCPU.apply(student, teachers, *hard, kind, temperature, ce_weight)
    return soft_label_loss_reference(student, teachers, *hard, kind=kind, temperature=temperature, ce_weight=ce_weight)


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
    """The same by autograd from its definition: in float64 for tests, and for what the CPU's kernels do not take."""
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
    """What the sum of the rows' losses, and the rows' gradients, are to be multiplied by."""
    power = 2 if kind == "kl_t2" else 0
    return temperature**power / batch, (temperature ** (power - 1) if kind in ("kl", "kl_t2") else 1.0) / batch
