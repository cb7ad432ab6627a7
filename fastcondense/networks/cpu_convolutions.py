"""Convolutions of a network that is trained in bfloat16 on a CPU: each by the fastest of the ways that we know."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .grouped_convolution import GroupedConvolution
from .matrix_convolution import MatrixConvolution, is_faster_for_weights


class CpuConvolutions(TorchFunctionMode):
    """Within it, convolutions as nn.Conv2d calls them, without dilation, are in bfloat16, by one of these ways.

    Weights stay float32, and their gradients are float32.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.conv2d and not kwargs and _is_known(args):
            x, weight, bias, stride, padding, _, groups = args
            x = x.to(torch.bfloat16)
            if groups > 1:
                return GroupedConvolution.apply(x, weight, bias, stride, padding, groups)
            if is_faster_for_weights(x.shape, weight.shape, stride, padding):
                return MatrixConvolution.apply(x, weight, bias, stride, padding)
        return function(*args, **(kwargs or {}))


def _is_known(args: tuple[Any, ...]) -> bool:
    """Whether it is a batch's convolution with all that nn.Conv2d gives, no dilation, and a border in numbers."""
    if len(args) != 7 or args[0].dim() != 4:
        return False
    stride, padding, dilation = args[3:6]
    return isinstance(stride, tuple) and isinstance(padding, tuple) and dilation == (1, 1)
