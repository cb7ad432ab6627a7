"""JPEG bytes or pixels of a .beton file to resized squares, in numba, as FFCV's compiled code calls it.

JPEG is decoded by the libjpeg-turbo that `bind` was given, with its accurate DCT, as Pillow's; squares are resize.py's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from .beton import IMAGE, JPEG
from .resize import compiled, cut_square

_RGB, _ACCURATE_DCT = 0, 4096  # TJPF_RGB, TJFLAG_ACCURATEDCT

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


@compiled
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


@compiled
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


_BYTE, _PLACE = types.uint8, types.uint64
BATCH = types.void(
    *(_PLACE[::1], _BYTE[:, :, :, ::1]),
    types.Array(numba.from_dtype(IMAGE), 1, "A", readonly=True, aligned=False),
    types.Array(_BYTE, 1, "C", readonly=True),
    *(_PLACE[::1], _PLACE[::1], types.uint32[::1], types.int32[:, ::1], types.boolean[::1]),
)
"""Types of decode_batch's arguments, as FFCV hands them on."""


@cache
def batch_decoder() -> Any:
    """decode_batch by its address, which other compiled code calls without being compiled together with it."""

    def call(samples, squares, images, file, places, lengths, crcs, table, is_damaged):
        decode_batch(samples, squares, images, file, places, lengths, crcs, table, is_damaged)

    return numba.cfunc(BATCH, cache=True)(call)
