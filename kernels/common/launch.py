"""Launch shapes of the Triton kernels: pure functions of the tensor's shape, never of the device or of a timing.

The order of summation follows from the launch shape, so the bits of a result do not depend on which GPU computed it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

OPTIONS = {"enable_fp_fusion": True}  # Triton's default is going to flip, and it decides bits

TILE = 4096  # elements; 16 a thread at 8 warps
_PROGRAMS = 1024


@dataclass(frozen=True)
class RowTiles:
    """Tiles [block_r, block_c] of a matrix [num_rows, channels]; a program of a reduction takes `chunk` rows."""

    block_r: int
    block_c: int
    chunk: int
    num_chunks: int
    num_tiles: int
    num_columns: int


def cdiv(numerator: int, denominator: int) -> int:
    """Quotient, rounded up."""
    return -(-numerator // denominator)


def power_of_two(value: int) -> int:
    """The smallest power of two that is at least value >= 1."""
    return 1 << (value - 1).bit_length()


def row_tiles(num_rows: int, channels: int, tile: int = TILE) -> RowTiles:
    """Tiles of `tile` elements, 8 to 64 channels wide, and chunks such that about 1024 programs reduce a big tensor."""
    block_c = min(max(power_of_two(channels), 8), 64)
    block_r = tile // block_c
    num_columns = cdiv(channels, block_c)
    num_tiles = cdiv(num_rows, block_r)
    chunk = block_r * cdiv(num_tiles, max(1, _PROGRAMS // num_columns))
    return RowTiles(block_r, block_c, chunk, cdiv(num_rows, chunk), num_tiles, num_columns)


def device_of(x: Tensor) -> AbstractContextManager[object]:
    """Makes x's GPU the current one, where Triton launches; nothing for the interpreter's CPU tensors."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()


def moments_gradients(dmean: Tensor | None, dvar: Tensor | None, dummy: Tensor) -> tuple[bool, Tensor, Tensor]:
    """Whether there is one, and both, contiguous: zeros for one that is None; `dummy`, which nobody reads, for two."""
    if dmean is None and dvar is None:
        return False, dummy, dummy
    given = [torch.zeros_like(dummy) if gradient is None else gradient.contiguous() for gradient in (dmean, dvar)]
    return True, given[0], given[1]


@dataclass(frozen=True)
class PixelTiles:
    """Tiles [block_p, block_c] of an image's pixels and channels; a program of a reduction takes `chunk` images."""

    block_p: int
    block_c: int
    chunk: int
    num_chunks: int
    num_tiles: int
    num_columns: int


def pixel_tiles(num_images: int, channels: int, num_pixels: int) -> PixelTiles:
    """Tiles of at most 2048 elements (eight sums each fit the registers), up to 64 channels wide, wider for few pixels.

    Chunks are such that about 1024 programs reduce a big tensor.
    """
    tile = TILE // 2
    block_p = min(power_of_two(num_pixels), tile // min(power_of_two(channels), 64))
    block_c = min(power_of_two(channels), tile // block_p)
    num_tiles, num_columns = cdiv(num_pixels, block_p), cdiv(channels, block_c)
    chunk = cdiv(num_images, max(1, _PROGRAMS // (num_tiles * num_columns)))
    return PixelTiles(block_p, block_c, chunk, cdiv(num_images, chunk), num_tiles, num_columns)
