"""Convolutions of frozen networks, whose weights are laid out once: planar or as oneDNN's matrix units want them.

And other modules that are slow in bfloat16 on a CPU, with the operators of ours in their forward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..networks.cpu_operators import CpuOperators
from .packed import Packed, PackedConvolution, is_supported

_MOST_SHAPES = 8
"""Shapes of maps for which a convolution keeps packed weights; more come only in an evaluation."""


class FrozenConvolution(nn.Conv2d):
    """A convolution with constant weights, of channels_last maps.

    On a CPU, oneDNN reorders channels_last weights in every call, and 512 x 512 x 3 x 3 weights on 2 x 2 maps take
    several times as long to reorder as to use; float32 maps, which are small then, are made planar instead. bfloat16
    weights of one group are packed once for each shape of the maps: forward, and for the gradient of the maps.
    """

    planar_weight: Tensor | None
    packed: dict[torch.Size, Packed]

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        if x.dtype == torch.bfloat16:
            return self._forward_bf16(x)
        if self.weight.numel() <= x.numel():
            return super().forward(x)
        if self.planar_weight is None or self.planar_weight.dtype != self.weight.dtype:
            self.planar_weight = self.weight.detach().contiguous()
        y = self._conv_forward(x.contiguous(), self.planar_weight, self.bias)
        return y.contiguous(memory_format=torch.channels_last)

    def _forward_bf16(self, x: Tensor) -> Tensor:
        if is_supported(self):
            return self._forward_packed(x)
        with CpuOperators():
            return super().forward(x)

    def _forward_packed(self, x: Tensor) -> Tensor:
        if x.shape not in self.packed:
            if len(self.packed) == _MOST_SHAPES:
                self.packed.clear()
            self.packed[x.shape] = Packed(self.weight.detach(), int(self.padding[0]), self.stride[0], x.shape)
        x = x.contiguous(memory_format=torch.channels_last)
        y: Tensor = PackedConvolution.apply(x, self.bias, self.packed[x.shape])
        return y.contiguous(memory_format=torch.channels_last)

    def _forget(self) -> None:
        """Drops what is made anew where and as it is needed."""
        self.__dict__["planar_weight"], self.__dict__["packed"] = None, {}

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FrozenConvolution:
        self._forget()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"planar_weight": None, "packed": {}}


def adopt(module: nn.Module) -> None:
    """Makes a convolution or group norm of a frozen network a fast one, in place: whoever holds it keeps all it has.

    Other modules are left alone.
    """
    if type(module) is nn.Conv2d:
        module.__class__ = FrozenConvolution
        assert isinstance(module, FrozenConvolution)
        module._forget()
    elif isinstance(module, (nn.Conv2d, nn.GroupNorm)) and not isinstance(module, _FastBf16):
        kind: Any = type(module)
        module.__class__ = _with_fast_bf16(kind)


class _FastBf16(nn.Module):
    """In front of a class of group norms, or of convolutions with a forward of their own, as timm's with TensorFlow's
    padding."""

    def forward(self, x: Tensor) -> Tensor:
        is_slow = x.device.type == "cpu" and x.dtype == torch.bfloat16
        with CpuOperators() if is_slow else nullcontext():
            return super().forward(x)


@functools.cache
def _with_fast_bf16(kind: type[nn.Module]) -> Any:
    return type(kind.__name__, (_FastBf16, kind), {})
