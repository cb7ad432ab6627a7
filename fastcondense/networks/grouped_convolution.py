"""bfloat16 convolutions of several groups on a CPU, with gradients by the ways that oneDNN has fast.

Its own are slow for many of them. On one core with AMX, 30 images: the gradient of 96 maps of 112 x 112 through
depthwise filters of 3 x 3 and stride 2 takes 396 ms, in float32 and back 60; through 144 of stride 1 at 56 x 56 14, as
a convolution with the filters mirrored 7; that of 240 filters of 5 x 5 at 28 x 28 284, in float32 58.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_backward = torch.ops.aten.convolution_backward


class GroupedConvolution(torch.autograd.Function):
    """F.conv2d without dilation: x bfloat16 [N, C, H, W] -> bfloat16 [N, O, H', W'], channels_last.

    weight [O, C / groups, h, w] and bias [O] or None are bfloat16 or float32, and so are their gradients.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, groups):
        x, low = x.contiguous(memory_format=torch.channels_last), weight.to(torch.bfloat16)
        ctx.save_for_backward(x, low)
        ctx.stride, ctx.padding, ctx.groups = tuple(stride), tuple(padding), groups
        ctx.weight_dtype, ctx.bias_dtype = weight.dtype, None if bias is None else bias.dtype
        return F.conv2d(x, low, None if bias is None else bias.to(x.dtype), stride, padding, 1, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = _map_gradient(ctx, dy, x, weight)
        if ctx.needs_input_grad[1]:
            dweight = _weight_gradient(ctx, dy, x, weight).to(ctx.weight_dtype)
        if ctx.needs_input_grad[2]:
            dbias = dy.sum((0, 2, 3), dtype=ctx.bias_dtype)
        return dx, dweight, dbias, None, None, None


def _map_gradient(ctx: Any, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    border = [side - 1 - p for side, p in zip(weight.shape[2:], ctx.padding, strict=True)]
    if ctx.stride == (1, 1) and weight.shape[1] == 1 and len(weight) == x.shape[1] and min(border) >= 0:
        return F.conv2d(dy, weight.flip(2, 3), None, 1, border, 1, ctx.groups)
    if ctx.stride != (1, 1):
        shaped = torch.empty_like(x, dtype=torch.float32)  # the maps themselves are not read
        return _gradients(ctx, dy.float(), shaped, weight.float(), (True, False))[0].to(x.dtype)
    return _gradients(ctx, dy, x, weight, (True, False))[0]


def _weight_gradient(ctx: Any, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    area, is_depthwise = weight.shape[2:].numel(), weight.shape[1] == 1
    if area > (9 if is_depthwise else 1):
        dy, x, weight = dy.float(), x.float(), weight.float()
    return _gradients(ctx, dy, x, weight, (False, True))[1]


def _gradients(ctx: Any, dy: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor, ...]:
    stride, padding = list(ctx.stride), list(ctx.padding)
    return _backward(dy, x, weight, None, stride, padding, [1, 1], False, [0, 0], ctx.groups, [*wanted, False])
