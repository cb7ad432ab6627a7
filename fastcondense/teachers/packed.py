"""bfloat16 convolutions on a CPU, with constant weights that are laid out for its matrix units once.

Otherwise oneDNN lays them out in every call. The gradient of the maps is a convolution too: of stride 1 with the
weights mirrored and transposed, of stride 2 as oneDNN's transposed convolution. Where maps are small and channels many,
matrix products take their place.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..networks.matrix_convolution import is_faster_for_maps, mirrored, multiply

_ops = torch.ops.mkldnn


@functools.cache
def _has_onednn() -> bool:
    """Whether oneDNN computes bfloat16 on this CPU."""
    return torch.backends.mkldnn.is_available() and bool(_ops._is_mkldnn_bf16_supported())


def is_supported(convolution: nn.Conv2d) -> bool:
    """Whether `Packed` takes the convolution: one group, no dilation, the same along both axes, bfloat16."""
    sides, stride, padding = convolution.weight.shape[2:], convolution.stride, convolution.padding
    return (
        _has_onednn()
        and convolution.weight.dtype == torch.bfloat16
        and convolution.groups == 1
        and convolution.dilation == (1, 1)
        and convolution.padding_mode == "zeros"
        and not isinstance(padding, str)
        and sides[0] == sides[1]
        and stride[0] == stride[1]
        and padding[0] == padding[1] < sides[0]
    )


class Packed:
    """The layouts of a convolution's weights for maps of one shape; that of the gradient is made when it is needed."""

    def __init__(self, weight: Tensor, padding: int, stride: int, shape: torch.Size):
        self.weight, self.padding, self.stride, self.shape = weight, padding, stride, shape
        self.side = weight.shape[2]
        self.border = self.side - 1 - padding
        """Zeros around the output's gradient, which a convolution of stride 1 makes that of the maps from."""
        self.is_product = is_faster_for_maps(shape, weight.shape, (stride, stride), (padding, padding))
        height, width = ((n + 2 * padding - self.side) // stride + 1 for n in shape[2:])
        self.output_shape = [shape[0], weight.shape[0], height, width]

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution of x: [N, C, H, W] channels_last."""
        if self.is_product:
            return multiply(x, self._forward_weight, bias, (self.stride, self.stride), (self.padding, self.padding))
        return _convolve(x, self._forward_weight, bias, self.padding, self.stride)

    def gradient(self, dy: Tensor) -> Tensor:
        """The gradient of x from that of the output, channels_last."""
        kind, weight = self._gradient_weight
        if kind == "product":
            return multiply(dy, weight, None, (1, 1), (self.border, self.border))
        if kind == "mirrored":
            return _convolve(dy, weight, None, self.border, 1)
        if kind == "stem":
            blocks = _convolve(dy, weight, None, 2, 1)
            n, _, height, width = blocks.shape
            rows = blocks.permute(0, 2, 3, 1).view(n, height, width, 2, 2, -1)  # of a block, then pixels, channels
            return rows.transpose(2, 3).reshape(n, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)
        padding, stride = [self.padding] * 2, [self.stride] * 2
        return _ops._convolution_transpose_pointwise(
            dy, weight, None, padding, self._output_padding, stride, [1, 1], 1, "none", [], ""
        )

    @functools.cached_property
    def _forward_weight(self) -> Tensor:
        if self.is_product:
            return self.weight.permute(2, 3, 1, 0).contiguous()
        return _packed(self.weight, self.padding, self.stride, list(self.shape))

    @functools.cached_property
    def _gradient_weight(self) -> tuple[str, Tensor]:
        if self.stride == 1:
            turned = mirrored(self.weight)
            if self.is_product:
                return "product", turned.contiguous()
            return "mirrored", _packed(turned.permute(3, 2, 0, 1), self.border, 1, self.output_shape)
        is_even = self.shape[2] % 2 == 0 and self.shape[3] % 2 == 0
        if (self.side, self.padding, self.stride) == (7, 3, 2) and is_even and self.weight.shape[1] <= 4:
            return "stem", _packed(_block_weight(self.weight), 2, 1, self.output_shape)
        padding, stride = [self.padding] * 2, [self.stride] * 2
        return "transposed", _ops._reorder_convolution_transpose_weight(
            self.weight.contiguous(), padding, self._output_padding, stride, [1, 1], 1, self.output_shape
        )

    @property
    def _output_padding(self) -> list[int]:
        covered = [(n - 1) * self.stride - 2 * self.padding + self.side for n in self.output_shape[2:]]
        return [n - m for n, m in zip(self.shape[2:], covered, strict=True)]


def _block_weight(weight: Tensor) -> Tensor:
    """The stem's gradient as a dense convolution: [K, C, 7, 7] -> [4 C, K, 5, 5], stride 1 and padding 2.

    Three channels fill a tenth of an AMX tile, so all of a 2 x 2 block of pixels are made at once: pixel 2 i + a takes
    dy[i + d] through tap a + 3 - 2 d, with d from -1 to 2, or none where there is no such tap; 5 x 5, from -2 to 2,
    keeps the padding even.
    """
    taps = F.pad(weight, (1, 2, 1, 2))  # one zero in front, two behind: tap t is at t + 1
    rows = torch.stack([torch.stack([taps[:, :, a + 4 - 2 * d] for d in range(-2, 3)]) for a in range(2)])
    both = torch.stack([torch.stack([rows[..., b + 4 - 2 * d] for d in range(-2, 3)]) for b in range(2)])
    # [b, e, a, d, K, C] -> out [a, b, C], in K, taps d and e
    return both.permute(2, 0, 5, 4, 3, 1).reshape(4 * weight.shape[1], weight.shape[0], 5, 5)


def _packed(weight: Tensor, padding: int, stride: int, shape: list[int]) -> Tensor:
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its annotation lacks the last argument
    return reorder(weight.contiguous().to_mkldnn(), [padding] * 2, [stride] * 2, [1, 1], 1, shape)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, stride: int) -> Tensor:
    return _ops._convolution_pointwise(x, weight, bias, [padding] * 2, [stride] * 2, [1, 1], 1, "none", [], "")


class PackedConvolution(torch.autograd.Function):
    """A convolution by `Packed` weights, differentiable in its maps."""

    @staticmethod
    def forward(ctx, x, bias, packed):
        ctx.packed = packed
        return packed.forward(x, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        return ctx.packed.gradient(dy.contiguous(memory_format=torch.channels_last)), None, None
