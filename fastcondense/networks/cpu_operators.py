"""bfloat16 operators of networks on a CPU that are slow in PyTorch: convolutions, each by the fastest of the ways that
we know, and group norms of channels_last maps.

A norm of each of 64 x 128 maps of 16 x 16, forward and backward, on one core of an AMD EPYC: 231 ms channels_last, 7 as
planes.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .grouped_convolution import Grouped
from .matrix_convolution import Products, is_faster_for_weights


class Way(Protocol):
    """How a convolution and its gradients are made. x, dy: bfloat16 [N, C, H, W], channels_last; weight: bfloat16."""

    def maps(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What it writes, bfloat16."""

    def map_gradient(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The gradient of x, bfloat16, from that of what it wrote."""

    def weight_gradient(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the weights, float32."""


class Bf16Convolution(torch.autograd.Function):
    """x bfloat16, weight [O, C / groups, h, w] and bias [O] or None of any type, a `Way` -> bfloat16, channels_last.

    Gradients of weight and bias are float32.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, way):
        x = x.contiguous(memory_format=torch.channels_last)
        low = weight.to(torch.bfloat16, memory_format=torch.channels_last)
        ctx.save_for_backward(x, low)
        ctx.way = way
        return way.maps(x, low, None if bias is None else bias.to(torch.bfloat16))

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        is_wanted = ctx.needs_input_grad
        dx = ctx.way.map_gradient(dy, x, weight) if is_wanted[0] else None
        dweight = ctx.way.weight_gradient(dy, x, weight) if is_wanted[1] else None
        dbias = dy.sum((0, 2, 3), dtype=torch.float32) if is_wanted[2] else None
        return dx, dweight, dbias, None


class CpuOperators(TorchFunctionMode):
    """Within it, convolutions as nn.Conv2d calls them, without dilation, are `Bf16Convolution`s where a way is known,
    and group norms of maps [N, C, H, W] are of planes.

    Weights stay float32.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.conv2d and not kwargs and (way := _way(args)):
            x, weight, bias = args[:3]
            return Bf16Convolution.apply(x.to(torch.bfloat16), weight, bias, way)
        if function is F.group_norm and args and args[0].dtype == torch.bfloat16 and args[0].dim() == 4:
            y = function(args[0].contiguous(), *args[1:], **kwargs)
            return y.contiguous(memory_format=torch.channels_last)
        return function(*args, **kwargs)


def _way(args: tuple[Any, ...]) -> Way | None:
    """That of a batch's convolution with all that nn.Conv2d gives, no dilation, and a border in numbers."""
    if len(args) != 7 or args[0].dim() != 4:
        return None
    x, weight, _, stride, padding, dilation, groups = args
    if not isinstance(stride, tuple) or not isinstance(padding, tuple) or dilation != (1, 1):
        return None
    if groups > 1:
        return Grouped(stride, padding, groups)
    is_faster = is_faster_for_weights(x.shape, weight.shape, stride, padding)
    return Products(stride, padding) if is_faster else None
