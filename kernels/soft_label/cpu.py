"""soft_label_loss on the CPU, computed in float32: row by row, so that a row's logits stay in the innermost cache."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange

from ..common.bfloat16 import round_, wide_of, widened
from ..common.threads import chunk_length, inline, kernel, launch, part
from ..common.vectors import fused
from .definition import scales

_LANES = 16  # partial sums of a row, each in index order: so they are vectorised, and no thread count moves a bit


@inline
def _exp(x):
    """e^x for x <= 0, to the last bit or two: 2^n e^r with |r| <= log(2) / 2; e^-87 for less."""
    x = np.float32(-87) if x < np.float32(-87) else x
    n = np.int32(fused(x, np.float32(1.4426950408889634), np.float32(-0.5)))
    r = fused(np.float32(n), np.float32(2.1219444e-4), fused(np.float32(n), np.float32(-0.693359375), x))
    y = fused(r, np.float32(1 / 5040), np.float32(1 / 720))
    y = fused(r, fused(r, fused(r, y, np.float32(1 / 120)), np.float32(1 / 24)), np.float32(1 / 6))
    y = fused(r, fused(r, fused(r, y, np.float32(1 / 2)), np.float32(1)), np.float32(1))
    return y * np.int32((n + 127) << 23).view(np.float32)


@part
def _sum(row):
    lanes = np.zeros(_LANES)
    whole = len(row) // _LANES * _LANES
    for begin in range(0, whole, _LANES):
        block = row[begin : begin + _LANES]
        for j in range(_LANES):
            lanes[j] += block[j]
    total = 0.0
    for lane in lanes:
        total += lane
    for value in row[whole:]:
        total += value
    return total


@part
def _maximum(row):
    lanes = np.full(_LANES, row[0])
    whole = len(row) // _LANES * _LANES
    for begin in range(0, whole, _LANES):
        block = row[begin : begin + _LANES]
        for j in range(_LANES):
            lanes[j] = block[j] if block[j] > lanes[j] else lanes[j]
    top = lanes[0]
    for lane in lanes:
        top = lane if lane > top else top
    for value in row[whole:]:
        top = value if value > top else top
    return top


@part
def _soften(row, factor, out):
    """out = exp(factor * (row - top)); returns top, the maximum of the row, and the sum of out."""
    top = _maximum(row)
    for k in range(len(row)):
        out[k] = _exp((row[k] - top) * factor)
    return top, _sum(out)


@part
def _diverge(z, t, factor, scale, p, q, gradient):
    """KL(p || q) of a row, p and q the softmax of factor * t and factor * z; gradient = scale * (q - p).

    The arguments p and q are scratch.
    """
    top_t, total_t = _soften(t, factor, p)
    top_z, total_z = _soften(z, factor, q)
    shift = np.float32(np.log(total_t / total_z))
    share_p, share_q, top = np.float32(1 / total_t), np.float32(1 / total_z), top_z - top_t
    for k in range(len(z)):
        pk, qk = p[k] * share_p, q[k] * share_q
        # y = log(q / p). The row's terms p (exp(y) - 1 - y) sum up to the divergence, none of them is negative, and
        # near 0 their series keeps the digits that q - p loses.
        y = fused(z[k] - t[k] - top, factor, shift)
        series = fused(y, fused(y, np.float32(1 / 362880), np.float32(1 / 40320)), np.float32(1 / 5040))
        series = fused(y, fused(y, fused(y, series, np.float32(1 / 720)), np.float32(1 / 120)), np.float32(1 / 24))
        excess = pk * (y * y) * fused(y, fused(y, series, np.float32(1 / 6)), np.float32(1 / 2))
        is_near = abs(y) < np.float32(0.5)
        gradient[k] = scale * (fused(pk, y, excess) if is_near else qk - pk)
        p[k] = excess if is_near else fused(-pk, y, qk - pk)
    return _sum(p)


@part
def _cross_entropy(z, label, partner, share, scale, q, gradient):
    """A row's cross-entropy with the mixed label; gradient = scale * (softmax(z) - label). q is scratch."""
    other = np.float32(1) - share
    top, total = _soften(z, np.float32(1), q)
    factor = np.float32(scale / total)
    for k in range(len(z)):
        gradient[k] = q[k] * factor
    gradient[label] -= scale * share
    gradient[partner] -= scale * other
    return np.log(total) - share * (z[label] - top) - other * (z[partner] - top)


@part
def _square(z, t, scale, squares, gradient):
    """Mean squared difference of z and t, whose gradient times `scale` is added. squares is scratch."""
    factor = np.float32(2 * scale / len(z))
    for k in range(len(z)):
        difference = z[k] - t[k]
        gradient[k] = fused(factor, difference, gradient[k])
        squares[k] = difference * difference
    return _sum(squares) / len(z)


@part
def _average(teachers, b, out):
    """out = the teachers' mean logits of row b; returns it."""
    out[:] = 0
    factor = np.float32(1 / len(teachers))
    for e in range(len(teachers)):
        row = teachers[e, b]
        for k in range(len(out)):
            out[k] = fused(factor, row[k], out[k])
    return out


@kernel
def loss_kernel(
    student, teachers, labels, partners, share, is_divergence, factor, ce_weight, loss_scale, scale, chunk, losses,
    gradient, result,
):  # fmt: skip
    # student, gradient: [B, K], of one type; teachers: float32 [E, B, K]; losses: float32 [B]; result: float32 [1]
    num_rows, num_classes = student.shape
    factor, scale, weight = np.float32(factor), np.float32(scale), np.float32(ce_weight)
    for index in prange(-(-num_rows // chunk)):
        scratch = np.empty((5, num_classes), np.float32)
        mean, p, q = scratch[0], scratch[1], scratch[2]  # indexed: what iteration yields is not known to be contiguous
        for b in range(index * chunk, min((index + 1) * chunk, num_rows)):
            z, out = widened(student[b], scratch[3]), wide_of(gradient[b], scratch[4])
            t = teachers[0, b] if len(teachers) == 1 else _average(teachers, b, mean)
            if is_divergence:
                losses[b] = _diverge(z, t, factor, scale, p, q, out)
            else:
                entropy = _cross_entropy(z, labels[b], partners[b], share[b], weight * scale, q, out)
                square = _square(z, t, scale, p, out) if len(teachers) else 0.0
                losses[b] = weight * entropy + square
            round_(out, gradient[b])
    total = 0.0
    for b in range(num_rows):
        total += losses[b]
    result[0] = total * loss_scale


class SoftLabelLoss(torch.autograd.Function):
    """`soft_label_loss` of checked arguments, the student float32 or bfloat16."""

    @staticmethod
    def forward(ctx, student, teachers, labels, partners, share, kind, temperature, ce_weight):
        student = student.contiguous()
        num_rows, num_classes = student.shape
        losses, gradient, result = torch.empty(num_rows), torch.empty_like(student), torch.empty(1)
        launch(
            loss_kernel, student,
            torch.empty(0, num_rows, num_classes) if teachers is None else teachers.float().contiguous(),
            labels.contiguous(), partners.contiguous(), share.float().contiguous(), kind in ("kl", "kl_t2"),
            1 / temperature, 1.0 if kind == "ce" else float(ce_weight), *scales(kind, num_rows, temperature),
            chunk_length(num_rows), losses, gradient, result,
        )  # fmt: skip
        ctx.save_for_backward(gradient)
        ctx.set_materialize_grads(False)
        return result[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dloss):
        (gradient,) = ctx.saved_tensors
        if dloss is None:
            return (None,) * 8
        return (gradient if dloss == 1 else gradient * dloss, *(None,) * 7)
