"""frozen_batch_norm on the CPU: one read of x forward, one pass backward, deterministic sums of chunks."""

import functools
import math

import torch

from ..common.launch import cdiv
from ..common.threads import chunk_length, launch_at
from .definition import ACTIVATIONS
from .loops import backward, forward

PERIOD = 512  # elements
CHUNK = 8192  # elements that are worth a task of their own
LANES = 16


@functools.cache
def _lengths(channels: int, size: int) -> tuple[int, int]:
    """Elements of a period and of a chunk: functions of the shape alone."""
    step = channels * (LANES // math.gcd(channels, LANES))
    period = channels if channels >= PERIOD else step * cdiv(PERIOD, step)
    return period, period * max(chunk_length(cdiv(size, period)), cdiv(CHUNK, period))


class FrozenBatchNorm(torch.autograd.Function):
    """`frozen_batch_norm` of checked float32 or bfloat16 arguments, of which each lies densely in its memory."""

    @staticmethod
    def forward(ctx, x, residual, scale, shift, center, output_center, activation):
        channels, size, y = x.shape[1], x.numel(), torch.empty_like(x)
        has_residual, has_output = residual is not None, output_center is not None
        mean, var = (None, None) if center is None else (torch.empty_like(center), torch.empty_like(center))
        y_mean, y_var = (torch.empty_like(center), torch.empty_like(center)) if has_output else (None, None)
        launch_at(
            forward, x.dtype, x, residual, y, scale, shift, center, output_center, mean, var, y_mean, y_var, size,
            channels, *_lengths(channels, size), ACTIVATIONS.index(activation),
        )  # fmt: skip
        # y is somebody's input and alive anyway; but of these two activations alone it tells the derivative.
        ctx.keeps_y = has_residual and (activation == "relu" or (activation == "none" and has_output))
        keeps_residual = has_residual and activation not in ("none", "relu")
        ctx.save_for_backward(x, y if ctx.keeps_y else residual if keeps_residual else None, scale, shift, mean, y_mean)
        ctx.activation = activation
        ctx.set_materialize_grads(False)
        return tuple(made for made in (y, mean, var, y_mean, y_var) if made is not None)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dmean=None, dvar=None, dy_mean=None, dy_var=None):
        x, kept, scale, shift, mean, y_mean = ctx.saved_tensors
        channels, size = x.shape[1], x.numel()
        has_output = dy_mean is not None or dy_var is not None
        dmean, dvar, dy_mean, dy_var = (
            None if vector is None else vector.contiguous() for vector in (dmean, dvar, dy_mean, dy_var)
        )
        if dy is not None:
            dy = dy.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        # without activation and gradients of y's moments the residual's gradient is dy itself
        has_dresidual = has_output or (dy is not None and ctx.activation != "none")
        dresidual = (torch.empty_like(x) if has_dresidual else dy) if ctx.needs_input_grad[1] else None
        launch_at(
            backward, x.dtype, dy, x, kept, dx, dresidual if has_dresidual else None, scale, shift, mean, dmean, dvar,
            y_mean, dy_mean, dy_var, size, channels, *_lengths(channels, size), ACTIVATIONS.index(ctx.activation),
            ctx.keeps_y,
        )  # fmt: skip
        return dx, dresidual, None, None, None, None, None
