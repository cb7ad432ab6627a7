"""Terms of the recover loss that are not statistics: image priors, G-VBSM's, EDC's, and the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..user_functions import load_function

POOLED = 32
"""Side of the images that densification compares."""

MAX_DOUBLINGS = 24
"""exp(A) is right for a norm of A up to 2^24: some 700 images a class, all of the largest normalised pixels."""

TAYLOR_DEGREE = 18
"""Degree of the series of exp(A) for a norm of A up to 1, to float64's precision."""

TRACE_EVERY = 4
"""Squarings until the trace is divided out, which falls from 1 to no less than m^-15 meanwhile; MAX_DOUBLINGS is a
multiple of it."""


def image_priors(views: Tensor) -> tuple[Tensor, Tensor]:
    """Total variation of the batch and mean over the batch of the images' Euclidean norms: two scalars.

    Total variation is the sum of four Frobenius norms, each over the whole batch: of the differences between
    neighbours to the right, below, and along the two diagonals. views: [N, C, H, W]; 16-bit ones are summed in float32.
    Where a norm is 0, so is its gradient.
    """
    if views.dtype in (torch.bfloat16, torch.float16):
        views = views.float()
    pairs = (
        (views[:, :, :, :-1], views[:, :, :, 1:]),
        (views[:, :, :-1], views[:, :, 1:]),
        (views[:, :, 1:, :-1], views[:, :, :-1, 1:]),
        (views[:, :, :-1, :-1], views[:, :, 1:, 1:]),
    )
    norms = [torch.linalg.vector_norm(one - other) for one, other in pairs]
    return torch.stack(norms).sum(), torch.linalg.vector_norm(views.flatten(1), dim=1).mean()


def densification(views: Tensor, classes: int | Sequence[int], temperature: float = 4.0) -> Tensor:
    """sum_k KL(softmax(l_k / temperature) || softmax(l_k)), l_k the Gram eigenvalues of class k's views: a scalar.

    views: [N, 3, S, S], class by class; averaged to 32 x 32 first, or as they are where S < 32. classes: how many there
    are, with as many views each, or the views of each. The first softmax is constant (G-VBSM). The
    softmax of eigenvalues in the thousands needs them to absolute precision, so all but the averages is float64. Raises
    ValueError if these are not the numbers of the views.
    """
    if isinstance(classes, int) and len(views) % classes:
        raise ValueError(f"densification needs as many views in each of {classes} classes, got {len(views)}")
    counts = [len(views) // classes] * classes if isinstance(classes, int) else list(classes)
    if sum(counts) != len(views):
        raise ValueError(f"densification needs {sum(counts)} views, those of {len(counts)} classes, got {len(views)}")
    if views.dtype in (torch.bfloat16, torch.float16):
        views = views.float()
    height, width = (min(side, POOLED) for side in views.shape[2:])
    pooled = F.adaptive_avg_pool2d(views, (height, width))
    rows = pooled.flatten(1).double()
    groups = [rows.unflatten(0, (len(counts), -1))] if len(set(counts)) == 1 else [x[None] for x in rows.split(counts)]
    terms = [_SpectrumDivergence.apply(group @ group.mT, temperature) for group in groups]
    return sum(terms[1:], terms[0]).to(views.dtype)


def flatness(logits: Tensor, ema_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """KL(p || q) / classes, p and q the softmax of ema_logits and of logits over temperature: a scalar, mean of images.

    Both: [N, classes]; p is constant. As published, the sum is divided by N times the classes, and not multiplied by
    temperature^2 (EDC). Computed in float64: the two answers are nearly the same.
    """
    log_p, log_q = (F.log_softmax(x.double() / temperature, 1) for x in (ema_logits.detach(), logits))
    return (F.kl_div(log_q, log_p, reduction="sum", log_target=True) / logits.numel()).to(logits.dtype)


def own_loss(reference: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The user's function of (views [N, 3, S, S], logits [N, K], classes int64 [N]) that `reference` names.

    It raises ValueError where the function gives something else than one number with a gradient.
    """
    function = load_function(reference, "recover.loss")

    def loss(views: Tensor, logits: Tensor, classes: Tensor) -> Tensor:
        made = function(views, logits, classes.clone())
        is_number = isinstance(made, Tensor) and made.numel() == 1 and made.is_floating_point()
        if not is_number or not made.requires_grad:
            got = f"{tuple(made.shape)} of {made.dtype}" if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(
                f"recover.loss {reference!r} must give one number with a gradient in the images, got {got}"
            )
        return made.reshape(()).to(logits.dtype)

    return loss


class _SpectrumDivergence(torch.autograd.Function):
    """sum over symmetric G of KL(softmax(l / temperature) || softmax(l)), l the eigenvalues of G: float64 [C, m, m].

    With P = exp(G / temperature) / tr and Q = exp(G) / tr it is tr P (log P - log Q), and its gradient Q - P: smooth
    where eigenvalues coincide. Library eigensolvers report convergence to the host, which no CUDA graph can capture.
    """

    @staticmethod
    def forward(ctx, grams, temperature):
        means = grams.diagonal(dim1=1, dim2=2).mean(1)
        centered = grams - torch.diag_embed(means[:, None].expand(-1, grams.shape[1]))  # both softmax stay
        states, log_traces = _exponential(torch.cat([centered / temperature, centered]))
        (flat, sharp), (log_flat, log_sharp) = states.chunk(2), log_traces.chunk(2)
        ctx.save_for_backward(sharp - flat)
        return ((1 / temperature - 1) * (flat * centered).sum((1, 2)) - log_flat + log_sharp).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None


def _exponential(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """exp(A) / tr exp(A) and log tr exp(A) of symmetric A, float64 [N, m, m]: by scaling and squaring, none of it read.

    A is halved until its norm is 1, exponentiated by its series, and squared as often. Traces are divided out now and
    then, so that nothing overflows; a trace counts with all squarings that come after it.
    """
    doublings = torch.linalg.vector_norm(matrices, dim=(1, 2)).log2().ceil().clamp(0, MAX_DOUBLINGS)  # [N]
    numbers = torch.arange(MAX_DOUBLINGS + 1, device=matrices.device)[:, None]
    is_due = (numbers < doublings)[:, :, None, None]  # the last one never
    scaled = matrices * torch.exp2(-doublings)[:, None, None]
    identity = torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device).expand_as(matrices)
    state, traces = identity, []
    for degree in range(TAYLOR_DEGREE, 0, -1):
        state = torch.baddbmm(identity, scaled, state, alpha=1 / degree)
    for number, is_due_now in enumerate(is_due):
        if number % TRACE_EVERY == 0:
            traces.append(state.diagonal(dim1=1, dim2=2).sum(1))
            state = state / traces[-1][:, None, None]
        state = torch.where(is_due_now, state @ state, state)
    left = (doublings - numbers[::TRACE_EVERY]).clamp(min=0)
    return state, (torch.stack(traces).log() * torch.exp2(left)).sum(0)
