"""bfloat16 convolutions on a CPU as matrix products, where maps are small and channels many.

There oneDNN takes longer. On one core with AMX, 64 images, 512 to 512 channels at 4 x 4: 37, 41 and 109 ms for maps,
their gradient and the weights' gradient as its convolutions, 18, 20 and 21 as products; 100 images at 2 x 2, with
weights that it has laid out before: 23 ms for maps and for their gradient, 5 and 4 as products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Pairs of channels for each position of an output map, above which products win: measured for 10 to 128 images.
_FOR_MAPS = 8192
_FOR_WEIGHTS = 512

Pair = tuple[int, int]


def is_faster_for_weights(x: torch.Size, weight: torch.Size, stride: Pair, padding: Pair) -> bool:
    """Whether products are the faster way to the weights' gradient at least, by shapes."""
    return _is_faster(_FOR_WEIGHTS, x, weight, stride, padding)


def is_faster_for_maps(x: torch.Size, weight: torch.Size, stride: Pair, padding: Pair) -> bool:
    """Whether products are the faster way to maps, and of stride 1 to their gradient, by shapes."""
    return _is_faster(_FOR_MAPS, x, weight, stride, padding)


def _is_faster(pairs: int, x: torch.Size, weight: torch.Size, stride: Pair, padding: Pair) -> bool:
    sizes = zip(x[2:], weight[2:], stride, padding, strict=True)
    height, width = ((size + 2 * border - side) // step + 1 for size, side, step, border in sizes)
    return weight[0] * weight[1] >= pairs * height * width > 0


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
    """The convolution of x [N, C, H, W], weight [h, w, C, O] and bias [O], bfloat16: [N, O, H', W'], channels_last."""
    windows = _windows(x, weight.shape[:2], stride, padding)
    size, inputs = windows.shape[:3], windows.shape[3:].numel()
    rows, matrix = windows.reshape(-1, inputs), weight.reshape(inputs, -1)
    y = rows @ matrix if bias is None else torch.addmm(bias, rows, matrix)
    return y.view(*size, -1).permute(0, 3, 1, 2)


def mirrored(weight: Tensor) -> Tensor:
    """The weights [h, w, O, C] by which a convolution of stride 1 makes the gradient of the maps from the output's."""
    return weight.flip(2, 3).permute(2, 3, 0, 1)


class MatrixConvolution(torch.autograd.Function):
    """x bfloat16 [N, C, H, W], weight float32 [O, C, h, w], bias float32 [O] or None -> bfloat16, channels_last."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding):
        x = x.contiguous(memory_format=torch.channels_last)
        low = weight.to(torch.bfloat16, memory_format=torch.channels_last)
        bias = None if bias is None else bias.to(torch.bfloat16)
        ctx.save_for_backward(x, low)
        ctx.stride, ctx.padding = stride, padding
        ctx.are_maps_products = is_faster_for_maps(x.shape, weight.shape, stride, padding)
        if ctx.are_maps_products:
            return multiply(x, low.permute(2, 3, 1, 0), bias, stride, padding)
        return F.conv2d(x, low, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = _map_gradient(ctx, dy, x, weight)
        if ctx.needs_input_grad[1]:
            dweight = _weight_gradient(dy, x, weight.shape, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            dbias = dy.sum((0, 2, 3), dtype=torch.float32)
        return dx, dweight, dbias, None, None


def _map_gradient(ctx: Any, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """That of x: of stride 1 a convolution of dy with the weights mirrored and transposed."""
    sides, padding = weight.shape[2:], ctx.padding
    is_mirrored = tuple(ctx.stride) == (1, 1) and all(p < s for p, s in zip(padding, sides, strict=True))
    if ctx.are_maps_products and is_mirrored:
        border = (sides[0] - 1 - padding[0], sides[1] - 1 - padding[1])
        return multiply(dy, mirrored(weight), None, (1, 1), border)
    stride = list(ctx.stride)
    wanted = [True, False, False]
    return torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, list(padding), [1, 1], False, [0, 0], 1, wanted
    )[0]


def _weight_gradient(dy: Tensor, x: Tensor, shape: torch.Size, stride: Pair, padding: Pair) -> Tensor:
    """float32 [O, C, h, w], channels_last; each sum is rounded to bfloat16."""
    windows = _windows(x, shape[2:], stride, padding)
    rows = dy.permute(0, 2, 3, 1).reshape(-1, shape[0]).t()
    found = (rows @ windows.reshape(rows.shape[1], -1)).float()
    return found.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)


def _windows(x: Tensor, sides: torch.Size, stride: Pair, padding: Pair) -> Tensor:
    """What each output position sees: [N, H, W, h, w, C], a view of x with its border of zeros, channels_last."""
    if any(padding):
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    x = x.permute(0, 2, 3, 1).contiguous()
    return x.unfold(1, sides[0], stride[0]).unfold(2, sides[1], stride[1]).permute(0, 1, 2, 4, 5, 3)
