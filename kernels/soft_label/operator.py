"""The students' losses: soft labels of several teachers, hard labels that CutMix or mixup mixed; loss and gradient."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from .definition import Kind, soft_label_loss_reference


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
        from . import gpu

        return gpu.SoftLabelLoss.apply(student, teachers, *hard, kind, temperature, ce_weight)
    if student.dtype in (torch.float32, torch.bfloat16):
        from . import cpu

        return cpu.SoftLabelLoss.apply(student, teachers, *hard, kind, temperature, ce_weight)
    return soft_label_loss_reference(student, teachers, *hard, kind=kind, temperature=temperature, ce_weight=ce_weight)
