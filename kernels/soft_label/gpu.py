"""soft_label_loss in Triton: one walk over a row for its log-sum-exp, a second, from cache, for loss and gradient."""

import torch
import triton
import triton.language as tl

from ..common.launch import OPTIONS, cdiv, device_of, power_of_two
from .definition import scales

TILE, WIDEST, WARPS = 1024, 2048, 4
SUM_BLOCK, SCALE_BLOCK = 1024, 2048


@triton.jit
def mean_logits(teachers_ptr, at, live, plane, E: tl.constexpr):
    """Mean over the teachers, float32; -inf where there is no class."""
    total = tl.load(teachers_ptr + at, mask=live, other=float("-inf")).to(tl.float32)
    for _ in tl.static_range(E - 1):
        teachers_ptr += plane
        total += tl.load(teachers_ptr + at, mask=live, other=0.0).to(tl.float32)
    return total * (1.0 / E)


@triton.jit
def accumulate(x, top, total, factor):
    """Adds exp(factor * (x - top)) over a row's block to its total; top is the maximum so far."""
    new_top = tl.maximum(top, tl.max(x, axis=1))
    total *= tl.exp((top - new_top) * factor)
    return new_top, total + tl.sum(tl.exp((x - new_top[:, None]) * factor), axis=1)


@triton.jit
def divergence_kernel(
    student_ptr, teachers_ptr, loss_ptr, direction_ptr, num_rows, plane, factor, K: tl.constexpr, E: tl.constexpr,
    HAS_GRADIENT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # student, direction: [num_rows, K]; teachers: [E, num_rows, K]; loss: float32 [num_rows]; factor: 1 / temperature
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    live_r = row < num_rows
    at = row.to(tl.int64)[:, None] * K
    k = tl.arange(0, BLOCK_K)
    top_z = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    top_t = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    total_z = tl.zeros((BLOCK_R,), tl.float32)
    total_t = tl.zeros((BLOCK_R,), tl.float32)
    for begin in range(0, K, BLOCK_K):
        live = live_r[:, None] & (begin + k < K)[None, :]
        here = at + (begin + k)[None, :]
        # A row that does not exist is all zeros: without a finite maximum it would be NaN.
        z = tl.load(student_ptr + here, mask=live, other=float("-inf")).to(tl.float32)
        t = mean_logits(teachers_ptr, here, live, plane, E)
        top_z, total_z = accumulate(tl.where(live_r[:, None], z, 0.0), top_z, total_z, factor)
        top_t, total_t = accumulate(tl.where(live_r[:, None], t, 0.0), top_t, total_t, factor)
    shift = tl.log(total_t / total_z)[:, None]
    loss = tl.zeros((BLOCK_R,), tl.float32)
    for begin in range(0, K, BLOCK_K):
        live = live_r[:, None] & (begin + k < K)[None, :]
        here = at + (begin + k)[None, :]
        z = tl.load(student_ptr + here, mask=live, other=0.0).to(tl.float32)
        t = tl.where(live, mean_logits(teachers_ptr, here, live, plane, E), 0.0)
        q = tl.exp((z - top_z[:, None]) * factor) / total_z[:, None]
        p = tl.exp((t - top_t[:, None]) * factor) / total_t[:, None]
        # y = log(q / p). The row's terms p (exp(y) - 1 - y) sum up to the divergence, none of them is negative, and
        # near 0 their series keeps the digits that q - p loses.
        y = (z - t - (top_z - top_t)[:, None]) * factor + shift
        series = 1 / 5040 + y * (1 / 40320 + y * (1 / 362880))
        series = 1 / 2 + y * (1 / 6 + y * (1 / 24 + y * (1 / 120 + y * (1 / 720 + y * series))))
        is_near = tl.abs(y) < 0.5
        excess = p * y * y * series
        loss += tl.sum(tl.where(live, tl.where(is_near, excess, q - p - p * y), 0.0), axis=1)
        if HAS_GRADIENT:
            direction = tl.where(is_near, excess + p * y, q - p)
            tl.store(direction_ptr + here, direction.to(direction_ptr.dtype.element_ty), mask=live)
    tl.store(loss_ptr + row, loss, mask=live_r)


@triton.jit
def hard_kernel(
    student_ptr, teachers_ptr, labels_ptr, partners_ptr, share_ptr, loss_ptr, direction_ptr, num_rows, plane, ce_weight,
    K: tl.constexpr, E: tl.constexpr, HAS_GRADIENT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # as above; labels, partners: int64 [num_rows]; share: float32 [num_rows]; E = 0: no teachers, cross-entropy alone
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    live_r = row < num_rows
    at = row.to(tl.int64)[:, None] * K
    k = tl.arange(0, BLOCK_K)
    top = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    for begin in range(0, K, BLOCK_K):
        live = live_r[:, None] & (begin + k < K)[None, :]
        z = tl.load(student_ptr + at + (begin + k)[None, :], mask=live, other=float("-inf")).to(tl.float32)
        top, total = accumulate(tl.where(live_r[:, None], z, 0.0), top, total, 1.0)
    label = tl.load(labels_ptr + row, mask=live_r, other=-1)
    partner = tl.load(partners_ptr + row, mask=live_r, other=-1)
    share = tl.load(share_ptr + row, mask=live_r, other=0.0)
    has_label = live_r & (label >= 0) & (label < K)
    has_partner = live_r & (partner >= 0) & (partner < K)
    own = tl.load(student_ptr + row.to(tl.int64) * K + label, mask=has_label, other=float("nan")).to(tl.float32)
    other = tl.load(student_ptr + row.to(tl.int64) * K + partner, mask=has_partner, other=float("nan")).to(tl.float32)
    loss = ce_weight * (tl.log(total) - share * (own - top) - (1 - share) * (other - top))
    for begin in range(0, K, BLOCK_K):
        live = live_r[:, None] & (begin + k < K)[None, :]
        here = at + (begin + k)[None, :]
        z = tl.load(student_ptr + here, mask=live, other=0.0).to(tl.float32)
        hard = tl.where((begin + k)[None, :] == label[:, None], share[:, None], 0.0)
        hard += tl.where((begin + k)[None, :] == partner[:, None], 1 - share[:, None], 0.0)
        direction = ce_weight * (tl.exp(z - top[:, None]) / total[:, None] - hard)
        if E > 0:
            difference = z - tl.where(live, mean_logits(teachers_ptr, here, live, plane, E), 0.0)
            loss += tl.sum(difference * difference, axis=1) * (1.0 / K)
            direction += difference * (2.0 / K)
        if HAS_GRADIENT:
            tl.store(direction_ptr + here, direction.to(direction_ptr.dtype.element_ty), mask=live)
    tl.store(loss_ptr + row, loss, mask=live_r)


@triton.jit
def sum_kernel(loss_ptr, result_ptr, num_rows, scale, BLOCK: tl.constexpr):
    # loss: float32 [num_rows]; result: float32 [1]
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, num_rows, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        total += tl.load(loss_ptr + i, mask=i < num_rows, other=0.0)
    tl.store(result_ptr, tl.sum(total, axis=0) * scale)


@triton.jit
def scale_kernel(direction_ptr, dloss_ptr, dstudent_ptr, size, scale, BLOCK: tl.constexpr):
    # direction, dstudent: [size]; dloss: float32 [1], which the host does not read
    base = tl.program_id(0).to(tl.int64) * BLOCK
    i = tl.arange(0, BLOCK)
    live = i < size - base
    direction = tl.load(direction_ptr + base + i, mask=live, other=0.0).to(tl.float32)
    dstudent = direction * (tl.load(dloss_ptr) * scale)
    tl.store(dstudent_ptr + base + i, dstudent.to(dstudent_ptr.dtype.element_ty), mask=live)


class SoftLabelLoss(torch.autograd.Function):
    """`soft_label_loss` of checked arguments."""

    @staticmethod
    def forward(ctx, student, teachers, labels, partners, share, kind, temperature, ce_weight):
        num_rows, num_classes = student.shape
        student = student.contiguous()
        teachers = student[None, :0] if teachers is None else teachers.contiguous()
        has_gradient = ctx.needs_input_grad[0]
        losses = torch.empty(num_rows, dtype=torch.float32, device=student.device)
        direction = torch.empty_like(student) if has_gradient else None
        result = torch.empty((), dtype=torch.float32, device=student.device)
        loss_scale, ctx.scale = scales(kind, num_rows, temperature)
        block_k = min(power_of_two(num_classes), WIDEST)
        block_r = max(1, TILE // block_k)
        outputs = (losses, student if direction is None else direction, num_rows, num_rows * num_classes)
        shape = {"K": num_classes, "HAS_GRADIENT": has_gradient, "BLOCK_R": block_r, "BLOCK_K": block_k}
        grid = (cdiv(num_rows, block_r),)
        with device_of(student):
            if kind in ("kl", "kl_t2"):
                divergence_kernel[grid](
                    student, teachers, *outputs, 1 / temperature, E=len(teachers), **shape, num_warps=WARPS, **OPTIONS,
                )  # fmt: skip
            else:
                hard_kernel[grid](
                    student, teachers, labels.contiguous(), partners.contiguous(), share.float().contiguous(), *outputs,
                    1.0 if kind == "ce" else ce_weight, E=0 if kind == "ce" else len(teachers), **shape,
                    num_warps=WARPS, **OPTIONS,
                )  # fmt: skip
            sum_kernel[(1,)](losses, result, num_rows, loss_scale, BLOCK=SUM_BLOCK, num_warps=WARPS, **OPTIONS)
        ctx.save_for_backward(direction)
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dloss):
        (direction,) = ctx.saved_tensors
        if dloss is None or direction is None:
            return (None,) * 8
        dstudent = torch.empty_like(direction)
        size = direction.numel()
        with device_of(direction):
            scale_kernel[(cdiv(size, SCALE_BLOCK),)](
                direction, dloss, dstudent, size, ctx.scale, BLOCK=SCALE_BLOCK, num_warps=WARPS, **OPTIONS
            )
        return (dstudent, *(None,) * 7)
