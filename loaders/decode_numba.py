"""JPEG bytes or pixels to a resized square, in numba: to the bit what Pillow's crop and bilinear resize give.

Pillow's resize is antialiased (a triangle as wide as the scale), in two passes, columns first, with weights of 22 bits
and a rounding to 8 bits between them. (Pillow 13 begins with the rows of some tall windows; that differs by one level.)
JPEG is decoded by the libjpeg-turbo that `bind` was given, with its accurate DCT, as Pillow's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from .beton import JPEG

TOP, LEFT, HEIGHT, WIDTH, FLIP, ROLL_Y, ROLL_X, OUT_HEIGHT, OUT_WIDTH, OUT_TOP, OUT_LEFT = range(11)
NUM_COLUMNS = 11
"""Columns of a table of cuts: a window, the size in pixels to which it is resized, where in that the square begins."""
_BITS = 22
_RGB, _ACCURATE_DCT = 0, 4096  # TJPF_RGB, TJFLAG_ACCURATEDCT

_inner: Callable[..., Any] = numba.njit(cache=True, nogil=True)
_parallel: Callable[..., Any] = numba.njit(cache=True, nogil=True, parallel=True)


def _foreign(name: str, result: Any, *arguments: Any) -> Any:
    return types.ExternalFunction(f"fastcondense_{name}", result(*arguments))


_init = _foreign("tjInitDecompress", types.uintp)
_destroy = _foreign("tjDestroy", types.int32, types.uintp)
_header = _foreign("tjDecompressHeader3", types.int32, types.uintp, types.uintp, types.uint64, *[types.uintp] * 4)
_decompress = _foreign(
    "tjDecompress2", types.int32, types.uintp, types.uintp, types.uint64, types.uintp, *[types.int32] * 5
)


def bind(library: ctypes.CDLL) -> None:
    """Names the libjpeg-turbo whose functions are called; needed once a process, before anything else here."""
    for name in ("tjInitDecompress", "tjDestroy", "tjDecompressHeader3", "tjDecompress2"):
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        llvmlite.binding.add_symbol(f"fastcondense_{name}", address)


def _pointer(_typing: Any, _address: Any) -> Any:
    """An integer as a pointer, for numba.carray: how compiled code reads memory that others refill."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.uintp), generate


pointer: Any = intrinsic(_pointer)


@_inner
def decode_jpeg(data: np.ndarray, pixels: np.ndarray) -> bool:
    """Decodes JPEG bytes into uint8 [H, W, 3]; False if they are damaged, or an image of another size."""
    found = np.zeros(4, np.int32)  # width, height, subsampling, colour space
    at = found.ctypes.data
    height, width, _ = pixels.shape
    decoder = _init()
    is_good = _header(decoder, data.ctypes.data, data.size, at, at + 4, at + 8, at + 12) == 0
    is_good = is_good and found[0] == width and found[1] == height
    if is_good:
        into = pixels.ctypes.data
        is_good = _decompress(decoder, data.ctypes.data, data.size, into, width, 0, height, _RGB, _ACCURATE_DCT) == 0
    _destroy(decoder)
    return is_good


def _crc_tables() -> np.ndarray:
    """The tables of what a byte does to a CRC-32 when k more bytes follow, uint32 [8, 256] by k."""
    tables = np.zeros((8, 256), np.uint32)
    tables[0] = np.arange(256)
    for _ in range(8):
        tables[0] = np.where(tables[0] & 1, (tables[0] >> 1) ^ np.uint32(0xEDB88320), tables[0] >> 1)
    for k in range(1, 8):
        tables[k] = (tables[k - 1] >> 8) ^ tables[0][tables[k - 1] & 255]
    return tables


_CRC_TABLES = _crc_tables()


@_inner
def crc32(data: np.ndarray) -> np.uint32:
    """CRC-32 of bytes, as zlib's; eight at a time, at a small part of what decoding them takes."""
    crc, num_eights = np.uint32(0xFFFFFFFF), data.size // 8
    for k in range(num_eights):
        at, folded = 8 * k, np.uint32(0)
        for j in range(8):
            byte = np.uint32(data[at + j])
            if j < 4:
                byte ^= (crc >> np.uint32(8 * j)) & np.uint32(255)
            folded ^= _CRC_TABLES[7 - j, byte]
        crc = folded
    for k in range(8 * num_eights, data.size):
        crc = (crc >> np.uint32(8)) ^ _CRC_TABLES[0, (crc ^ np.uint32(data[k])) & np.uint32(255)]
    return crc ^ np.uint32(0xFFFFFFFF)


@_inner
def _weights(length: int, resized: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First pixel read, number and weights of each of `count` pixels from `start` on, of `length` resized to `resized`.

    The number is 0 outside, where it is black.
    """
    scale = length / resized
    support = max(scale, 1.0)
    first, number = np.zeros(count, np.int64), np.zeros(count, np.int64)
    exact = np.empty(2 * int(np.ceil(support)) + 1)
    weights = np.empty((count, len(exact)), np.int32)
    for k in range(max(0, -start), min(count, resized - start)):
        center = (start + k + 0.5) * scale
        first[k] = max(0, int(center - support + 0.5))
        number[k] = min(length, int(center + support + 0.5)) - first[k]
        total = 0.0
        for t in range(number[k]):
            exact[t] = max(0.0, 1.0 - abs((t + first[k] - center + 0.5) * (1.0 / support)))
            total += exact[t]
        for t in range(number[k]):
            weights[k, t] = int(0.5 + exact[t] / total * (1 << _BITS))
    return first, number, weights


@_inner
def cut_square(pixels: np.ndarray, row: np.ndarray, square: np.ndarray) -> None:
    """One row of a table of cuts, applied to pixels uint8 [H, W, 3], into square uint8 [S, S, 3]."""
    top, left, height, width = row[TOP], row[LEFT], row[HEIGHT], row[WIDTH]
    y0, y1 = max(top, 0), min(top + height, pixels.shape[0])
    x0, x1 = max(left, 0), min(left + width, pixels.shape[1])
    if y1 - y0 == height and x1 - x0 == width:
        _resize(pixels, top, left, row, square)
    else:
        canvas = np.zeros((height, width, 3), np.uint8)  # over the edge it is black
        if y0 < y1 and x0 < x1:
            canvas[y0 - top : y1 - top, x0 - left : x1 - left] = pixels[y0:y1, x0:x1]
        _resize(canvas, 0, 0, row, square)


@_inner
def _resize(pixels: np.ndarray, top: int, left: int, row: np.ndarray, square: np.ndarray) -> None:
    size, half = square.shape[0], 1 << (_BITS - 1)
    first, number, weights = _weights(row[WIDTH], row[OUT_WIDTH], row[OUT_LEFT], size)
    first_row, number_rows, row_weights = _weights(row[HEIGHT], row[OUT_HEIGHT], row[OUT_TOP], size)
    columns = np.arange(size)[::-1] if row[FLIP] else np.arange(size)
    columns = 3 * ((columns + row[ROLL_X]) % size)

    lines = pixels.reshape(pixels.shape[0], 3 * pixels.shape[1])
    narrow = np.empty((row[HEIGHT], 3 * size), np.uint8)
    for y in range(first_row[number_rows > 0].min(), (first_row + number_rows).max()):
        line, into = lines[top + y], narrow[y]
        for x in range(size):
            red = green = blue = half
            at, to = 3 * (left + first[x]), columns[x]
            if number[x] == 2:  # enlarging, as small windows are
                one, two = weights[x, 0], weights[x, 1]
                red += one * line[at] + two * line[at + 3]
                green += one * line[at + 1] + two * line[at + 4]
                blue += one * line[at + 2] + two * line[at + 5]
            else:
                for t in range(number[x]):
                    weight = weights[x, t]
                    red += weight * line[at]
                    green += weight * line[at + 1]
                    blue += weight * line[at + 2]
                    at += 3
            into[to], into[to + 1], into[to + 2] = red >> _BITS, green >> _BITS, blue >> _BITS

    sums = np.empty(3 * size, np.int32)
    for y in range(size):
        sums[:] = half
        for t in range(number_rows[y]):
            weight, line = row_weights[y, t], narrow[first_row[y] + t]
            for x in range(3 * size):
                sums[x] += weight * np.int32(line[x])
        into = square[(y + row[ROLL_Y]) % size].reshape(3 * size)
        for x in range(3 * size):
            into[x] = sums[x] >> _BITS


@_parallel
def decode_batch(
    samples: np.ndarray,
    squares: np.ndarray,
    images: np.ndarray,
    file: np.ndarray,
    places: np.ndarray,
    lengths: np.ndarray,
    crcs: np.ndarray,
    table: np.ndarray,
    is_damaged: np.ndarray,
) -> None:
    """Cuts the samples out of the bytes of a .beton file: uint8 [B, S, S, 3], or marks them as damaged.

    images: beton.IMAGE [N]. places, lengths: where each image's bytes are, sorted by place. crcs: their CRC-32 as they
    were packed, uint32 [N]. table: a cut a sample.
    """
    for k in numba.prange(len(samples)):
        sample = samples[k]
        image = images[sample]
        begin, height, width = image["data_ptr"], int(image["height"]), int(image["width"])
        data = file[begin : begin + lengths[np.searchsorted(places, begin)]]
        if crc32(data) != crcs[sample]:
            is_damaged[sample] = True
        elif image["mode"] == JPEG:
            pixels = np.empty((height, width, 3), np.uint8)
            if decode_jpeg(data, pixels):
                cut_square(pixels, table[sample], squares[k])
            else:
                is_damaged[sample] = True
        elif data.size == height * width * 3:
            cut_square(data.reshape(height, width, 3), table[sample], squares[k])
        else:
            is_damaged[sample] = True
