"""Checks of the arguments that several operators take."""

from __future__ import annotations

import torch
from torch import Tensor


def check_map(operator: str, x: Tensor) -> None:
    """Raises ValueError unless x is a channels_last map [N, C, H, W] that is not empty."""
    if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last) or x.numel() == 0:
        raise ValueError(
            f"{operator} needs a 4-d channels_last input that is not empty, "
            f"got strides {x.stride()} for shape {tuple(x.shape)}"
        )


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype of arithmetic, sums and vectors: float64 for float64 maps, float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_vectors(operator: str, x: Tensor, **vectors: Tensor | None) -> None:
    """Raises ValueError unless each vector that is given has an entry a channel of x, contiguous, of `wide_dtype`."""
    dtype, shape = wide_dtype(x), x.shape[1:2]
    for name, vector in vectors.items():
        if vector is not None and (vector.shape != shape or vector.dtype != dtype or not vector.is_contiguous()):
            raise ValueError(
                f"{operator} needs a contiguous {dtype} {name} of shape {tuple(shape)}, "
                f"got {vector.dtype} of shape {tuple(vector.shape)} with strides {vector.stride()}"
            )
