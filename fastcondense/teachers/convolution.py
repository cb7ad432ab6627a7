"""Convolutions of frozen networks: channels_last, but for those whose weights outweigh their maps on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class FrozenConvolution(nn.Conv2d):
    """A convolution with constant weights, of channels_last maps.

    On a CPU, oneDNN reorders channels_last weights in every call, and 512 x 512 x 3 x 3 weights on 2 x 2 maps take
    several times as long to reorder as to use; the maps, which are small then, are made planar instead.
    """

    planar_weight: Tensor | None

    @staticmethod
    def adopt(convolution: nn.Conv2d) -> None:
        """Makes a plain convolution one of these, in place: whoever holds it keeps it, and its attributes stay."""
        convolution.__class__ = FrozenConvolution
        setattr(convolution, "planar_weight", None)  # noqa: B010 - not yet declared for its type

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or self.weight.numel() <= x.numel():
            return super().forward(x)
        if self.planar_weight is None or self.planar_weight.dtype != self.weight.dtype:
            self.planar_weight = self.weight.detach().contiguous()
        y = self._conv_forward(x.contiguous(), self.planar_weight, self.bias)
        return y.contiguous(memory_format=torch.channels_last)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FrozenConvolution:
        self.planar_weight = None  # it is made anew where and as it is needed
        return super()._apply(fn, recurse)
