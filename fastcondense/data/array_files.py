"""Arrays in the files of numpy (.npz) and of MATLAB (.mat, version 5), read with every length checked before it counts.

Memory stays under twice the file and 200 MB: images compress little, and what claims more is refused.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from ..loaders.reading import read_file, reading

_ROOM = 150_000_000  # bytes beyond twice the file
_MOST_AXES = 32


def read_npz(
    path: Path, names: Collection[str], problem: str = "{path} cannot be read: {error}"
) -> dict[str, np.ndarray]:
    """The arrays among `names` that a file of numpy.savez holds; nothing in it is unpickled.

    Raises ValueError that names a file which is missing or damaged; `problem` as in `reading`.
    """
    with reading(path, problem):
        with zipfile.ZipFile(path) as archive:
            _check_claim(path, sum(entry.file_size for entry in archive.infolist()))
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in names if name in file}
        if odd := next((name for name, array in found.items() if not isinstance(array, np.ndarray)), None):
            raise ValueError(f"{odd} is no array")  # numpy gives the bytes of what has not its format
        return found


def read_mat(
    path: Path, names: Collection[str], problem: str = "{path} cannot be read: {error}"
) -> dict[str, np.ndarray]:
    """The arrays of numbers among `names` that a file of MATLAB's version 5 holds, in its order of axes.

    scipy's reader believes what a damaged file says of itself, and ends the process. Raises ValueError as `read_npz`.
    """
    with reading(path, problem):
        content = memoryview(read_file(path))
        if content[124:128] not in (b"\x00\x01IM", b"\x01\x00MI"):
            raise ValueError("it is no MATLAB file of version 5 (save it with -v6 or -v7)")
        order, found = "<" if content[126:128] == b"IM" else ">", {}
        for kind, data in _elements(content[128:], order):
            if kind == _COMPRESSED:
                start = _inflated(data, 1024)
                kind, size = struct.unpack_from(f"{order}II", start)
                if kind != _MATRIX or _name(start[8:], order) not in names:
                    continue
                if size > len(content) + _ROOM // 2:  # it is copied once, into another order of axes
                    raise ValueError(f"it claims to hold {size:,} bytes, many more than it has")
                data = _inflated(data, 8 + size + 1)[8:]  # beyond the end, so that its checksum is compared
                if len(data) != size:
                    raise ValueError("it ends within a compressed element")
            if kind == _MATRIX and (name := _name(data, order)) in names:
                found[name] = _array(data, order)
        return found


def _check_claim(path: Path, size: int) -> None:
    if size > 2 * path.stat().st_size + _ROOM:
        raise ValueError(f"it claims to hold {size:,} bytes, many more than it has")


# --- elements of MATLAB: a kind, a number of bytes, and these --------------------------------------------------------

_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x800


def _elements(data: memoryview, order: str, is_whole: bool = True) -> Iterator[tuple[int, memoryview]]:
    """Kind and bytes of one element after another. Unless `is_whole`, the last may be cut off."""
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise ValueError("it ends within an element")
        word, size = struct.unpack_from(f"{order}II", data, at)
        if word >> 16:  # a small one: kind, size and at most four bytes in eight
            kind, size, begin, after = word & 0xFFFF, word >> 16, at + 4, at + 8
            if size > 4:
                raise ValueError("a small element is too long")
        else:
            kind, begin = word, at + 8
            after = begin + size if kind == _COMPRESSED else begin + -(-size // 8) * 8
        if is_whole and begin + size > len(data):
            raise ValueError("it ends within an element")
        yield kind, data[begin : begin + size]
        at = after


def _inflated(data: memoryview | bytes, most: int) -> memoryview:
    """The first `most` bytes of what is compressed, or all of them if there are fewer."""
    unpacker, found, at = zlib.decompressobj(), memoryview(bytearray(most)), 0
    while at < most and (part := unpacker.decompress(data, min(most - at, 1 << 20))):
        found[at : at + len(part)] = part
        at, data = at + len(part), unpacker.unconsumed_tail
    if at < most and not unpacker.eof:
        raise ValueError("it ends within a compressed element")
    return found[:at]


def _parts(matrix: memoryview, order: str) -> tuple[int, tuple[int, ...], str, Iterator[tuple[int, memoryview]]]:
    """Flags, shape and name of a matrix, and what follows."""
    parts = _elements(matrix, order, is_whole=False)
    (_, flags), (_, shape), (_, name) = next(parts), next(parts), next(parts)
    if len(flags) != 8 or len(shape) % 4 or not 8 <= len(shape) <= 4 * _MOST_AXES:
        raise ValueError("a matrix has no flags or no shape")
    sides = struct.unpack(f"{order}{len(shape) // 4}i", shape)
    return struct.unpack_from(f"{order}I", flags)[0], sides, bytes(name).decode("latin1"), parts


def _name(matrix: memoryview, order: str) -> str:
    return _parts(matrix, order)[2]


def _array(matrix: memoryview, order: str) -> np.ndarray:
    flags, shape, name, parts = _parts(matrix, order)
    if flags & 0xFF not in _CLASSES or flags & _COMPLEX:
        raise ValueError(f"{name} is no array of real numbers")
    kind, data = next(parts)
    if kind not in _STORED:
        raise ValueError(f"{name} holds no numbers")
    stored = np.dtype(order + _STORED[kind])
    if min(shape) < 0 or math.prod(shape) * stored.itemsize != len(data):
        raise ValueError(f"{name} has {len(data)} bytes where its shape {shape} needs {math.prod(shape)} numbers")
    numbers = np.frombuffer(data, stored).astype(_CLASSES[flags & 0xFF], copy=False)
    return numbers.reshape(shape, order="F")
