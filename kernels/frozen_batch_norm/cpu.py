"""frozen_batch_norm on the CPU: one read of x forward, one pass backward, deterministic sums of chunks."""

import math

import torch

from ..common.launch import cdiv
from ..common.threads import chunk_length, launch
from .definition import ACTIVATIONS
from .loops import backward, forward

PERIOD = 512  # elements
CHUNK = 8192  # elements that are worth a task of their own
LANES = 16


def _flat(x: torch.Tensor) -> torch.Tensor:
    """A dense tensor in the order of its memory."""
    return x.as_strided((x.numel(),), (1,))


def _lengths(channels: int, size: int) -> tuple[int, int]:
    """Elements of a period and of a chunk: functions of the shape alone."""
    step = channels * (LANES // math.gcd(channels, LANES))
    period = channels if channels >= PERIOD else step * cdiv(PERIOD, step)
    return period, period * max(chunk_length(cdiv(size, period)), cdiv(CHUNK, period))


class FrozenBatchNorm(torch.autograd.Function):
    """`frozen_batch_norm` of checked float32 arguments."""

    @staticmethod
    def forward(ctx, x, residual, scale, shift, center, output_center, activation):
        has_residual, has_output = residual is not None, output_center is not None
        y, mean, var = torch.empty_like(x), torch.empty_like(center), torch.empty_like(center)
        y_mean, y_var = (torch.empty_like(center), torch.empty_like(center)) if has_output else (mean, var)
        flat = _flat(x)
        launch(
            forward, flat, _flat(residual) if has_residual else flat, _flat(y), scale, shift, center,
            output_center if has_output else center, mean, var, y_mean, y_var, *_lengths(x.shape[1], x.numel()),
            ACTIVATIONS.index(activation), has_residual, has_output,
        )  # fmt: skip
        # y is somebody's input and alive anyway; but of these two activations alone it tells the derivative.
        ctx.keeps_y = has_residual and (activation == "relu" or (activation == "none" and has_output))
        ctx.keeps_residual = has_residual and activation not in ("none", "relu")
        kept = y if ctx.keeps_y else residual if ctx.keeps_residual else None
        ctx.save_for_backward(x, kept, scale, shift, mean, y_mean)
        ctx.activation = activation
        ctx.set_materialize_grads(False)
        return (y, mean, var, y_mean, y_var) if has_output else (y, mean, var)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dmean, dvar, dy_mean=None, dy_var=None):
        x, kept, scale, shift, mean, y_mean = ctx.saved_tensors
        has_dy, has_output = dy is not None, dy_mean is not None or dy_var is not None
        zero = torch.zeros_like(mean)
        dmean, dvar, dy_mean, dy_var = (
            zero if vector is None else vector.contiguous() for vector in (dmean, dvar, dy_mean, dy_var)
        )
        if has_dy:
            dy = dy.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        dresidual: torch.Tensor | None = dy if ctx.needs_input_grad[1] else None
        # without activation and gradients of y's moments it is dy itself
        has_dresidual = ctx.needs_input_grad[1] and (has_output or (has_dy and ctx.activation != "none"))
        if has_dresidual:
            dresidual = torch.empty_like(x)
        flat = _flat(x)
        launch(
            backward, _flat(dy) if has_dy else flat, flat, flat if kept is None else _flat(kept), _flat(dx),
            flat if dresidual is None or not has_dresidual else _flat(dresidual), scale, shift, mean, dmean, dvar,
            y_mean, dy_mean, dy_var, *_lengths(x.shape[1], x.numel()), ACTIVATIONS.index(ctx.activation), has_dy,
            ctx.keeps_y, ctx.keeps_residual, has_output, has_dresidual,
        )  # fmt: skip
        return dx, dresidual, None, None, None, None, None
