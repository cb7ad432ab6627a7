"""bfloat16 convolutions on a CPU as matrix products, where maps are small and channels many.

There oneDNN takes longer. On one core with AMX, 64 images, 512 to 512 channels at 4 x 4: 37, 41 and 109 ms for maps,
their gradient and the weights' gradient as its convolutions, 18, 20 and 21 as products; 100 images at 2 x 2, with
weights that it has laid out before: 23 ms for maps and for their gradient, 5 and 4 as products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
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
    """The convolution of x [N, C, H, W], weight [h, w, C, O] and bias [O], bfloat16: [N, O, H', W'], channels_last.

    The result is no view, so that an activation may take its place.
    """
    windows = _windows(x, weight.shape[:2], stride, padding)
    (count, height, width), inputs = windows.shape[:3], windows.shape[3:].numel()
    rows, matrix = windows.reshape(-1, inputs), weight.reshape(inputs, -1)
    shape = count, matrix.shape[1], height, width
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    products = y.permute(0, 2, 3, 1).view(rows.shape[0], -1)
    if bias is None:
        torch.mm(rows, matrix, out=products)
    else:
        torch.addmm(bias, rows, matrix, out=products)
    return y


def mirrored(weight: Tensor) -> Tensor:
    """The weights [h, w, O, C] by which a convolution of stride 1 makes the gradient of the maps from the output's."""
    return weight.flip(2, 3).permute(2, 3, 0, 1)


@dataclass(frozen=True)
class Products:
    """A way of a convolution of one group (cpu_operators.py): its weights' gradient is a product, and where that is
    the faster way, maps and their gradient too."""

    stride: Pair
    padding: Pair

    def maps(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if is_faster_for_maps(x.shape, weight.shape, self.stride, self.padding):
            return multiply(x, weight.permute(2, 3, 1, 0), bias, self.stride, self.padding)
        return F.conv2d(x, weight, bias, self.stride, self.padding)

    def map_gradient(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Of stride 1 a convolution of dy with the weights mirrored and transposed."""
        border = border_of(weight, self.padding)
        is_product = is_faster_for_maps(x.shape, weight.shape, self.stride, self.padding)
        if is_product and self.stride == (1, 1) and min(border) >= 0:
            return multiply(dy, mirrored(weight), None, (1, 1), border)
        return gradients(dy, x, weight, self.stride, self.padding, 1, (True, False))[0]

    def weight_gradient(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Each sum is rounded to bfloat16."""
        windows = _windows(x, weight.shape[2:], self.stride, self.padding)
        rows = dy.permute(0, 2, 3, 1).reshape(-1, len(weight)).t()
        found = (rows @ windows.reshape(rows.shape[1], -1)).float()
        return found.view(len(weight), *weight.shape[2:], weight.shape[1]).permute(0, 3, 1, 2)


def border_of(weight: Tensor, padding: Pair) -> Pair:
    """Zeros around the output's gradient, of which a convolution with mirrored weights makes that of the maps."""
    return weight.shape[2] - 1 - padding[0], weight.shape[3] - 1 - padding[1]


def gradients(
    dy: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, groups: int, wanted: tuple[bool, bool]
) -> tuple[Tensor, ...]:
    """PyTorch's own gradients of the maps and of the weights, those of them that are wanted."""
    of = list(stride), list(padding), [1, 1], False, [0, 0], groups, [*wanted, False]
    return torch.ops.aten.convolution_backward(dy, x, weight, None, *of)


def _windows(x: Tensor, sides: torch.Size, stride: Pair, padding: Pair) -> Tensor:
    """What each output position sees: [N, H, W, h, w, C], a view of x with its border of zeros, channels_last."""
    if any(padding):
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    x = x.permute(0, 2, 3, 1).contiguous()
    return x.unfold(1, sides[0], stride[0]).unfold(2, sides[1], stride[1]).permute(0, 1, 2, 4, 5, 3)
