"""bfloat16 convolutions of several groups on a CPU, with gradients by the ways that oneDNN has fast.

Its own are slow for many of them. On one core with AMX, 30 images: the gradient of 96 maps of 112 x 112 through
depthwise filters of 3 x 3 and stride 2 takes 396 ms, in float32 and back 60; through 144 of stride 1 at 56 x 56 14, as
a convolution with the filters mirrored 7; that of 240 filters of 5 x 5 at 28 x 28 284, in float32 58.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .matrix_convolution import Pair, border_of, gradients


@dataclass(frozen=True)
class Grouped:
    """A way of a convolution of several groups (cpu_operators.py)."""

    stride: Pair
    padding: Pair
    groups: int

    def maps(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, 1, self.groups)

    def map_gradient(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        border, is_depthwise = border_of(weight, self.padding), len(weight) == x.shape[1] == self.groups
        if self.stride != (1, 1):
            shaped = torch.empty_like(x, dtype=torch.float32)  # the maps themselves are not read
            return self._gradients(dy.float(), shaped, weight.float(), (True, False))[0].to(x.dtype)
        if is_depthwise and min(border) >= 0:
            return F.conv2d(dy, weight.flip(2, 3), None, 1, border, 1, self.groups)
        return self._gradients(dy, x, weight, (True, False))[0]

    def weight_gradient(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        area, is_depthwise = weight.shape[2:].numel(), weight.shape[1] == 1
        if area > (9 if is_depthwise else 1):
            dy, x, weight = dy.float(), x.float(), weight.float()
        return self._gradients(dy, x, weight, (False, True))[1].float()

    def _gradients(self, dy: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor, ...]:
        return gradients(dy, x, weight, self.stride, self.padding, self.groups, wanted)
