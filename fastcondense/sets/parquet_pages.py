"""What the pages of a parquet file say of their own size, against its index: a reader takes memory as the pages say.

A page begins with a PageHeader in Thrift's compact protocol (parquet-format's parquet.thrift), of which fields 2 and 3,
i32, are the bytes of the page unfolded and as stored. Arrow does not compare them with the index.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from ..loaders.reading import open_file

_I32, _DOUBLE, _BINARY, _STRUCT = 5, 7, 8, 12
_UNFOLDED, _STORED = 2, 3
_DEEPEST = 8


def check_pages(file: Path, metadata: Any) -> None:
    """Raises ValueError if a column's pages unfold to more than the index says, or cannot be followed.

    metadata: pyarrow's FileMetaData.
    """
    with open_file(file) as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for group in range(metadata.num_row_groups):
            for number in range(metadata.num_columns):
                column = metadata.row_group(group).column(number)
                starts = [column.data_page_offset, column.dictionary_page_offset or column.data_page_offset]
                unfolded = _unfolded(data, min(starts), min(starts) + column.total_compressed_size)
                if unfolded > (known := column.total_uncompressed_size):
                    raise ValueError(f"its pages claim {unfolded:,} bytes where its index has {known:,}")


def _unfolded(data: mmap.mmap, at: int, end: int) -> int:
    """Bytes to which the pages in a part of the file unfold."""
    total = 0
    if not 0 <= at <= end <= len(data):
        raise ValueError("a column is not in the file")
    while at < end:
        fields: dict[int, int] = {}
        at = _skip_struct(data, at, fields)
        sizes = fields.get(_UNFOLDED, -1), fields.get(_STORED, -1)
        if min(sizes) < 0:
            raise ValueError("a page has no size")
        total, at = total + sizes[0], at + sizes[1]
    return total


def _skip_struct(data: mmap.mmap, at: int, fields: dict[int, int] | None = None, depth: int = 0) -> int:
    """The place after a struct; its i32 fields are put in `fields`."""
    number = 0
    while kind_and_step := data[at]:
        at, kind, step = at + 1, kind_and_step & 15, kind_and_step >> 4
        if not step:
            value, at = _varint(data, at)
            number = _signed(value)
        number += step
        if kind in (1, 2):  # true, false
            continue
        if kind == 3:
            at += 1
        elif kind in (4, _I32, 6):
            value, at = _varint(data, at)
            if kind == _I32 and fields is not None:
                fields[number] = _signed(value)
        elif kind == _DOUBLE:
            at += 8
        elif kind == _BINARY:
            length, at = _varint(data, at)
            at += length
        elif kind == _STRUCT and depth < _DEEPEST:
            at = _skip_struct(data, at, None, depth + 1)
        else:
            raise ValueError("a page's header has fields of other kinds")
    return at + 1


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A number in groups of 7 bits, the lowest first, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("a page's header has a number that does not end")


def _signed(value: int) -> int:
    return (value >> 1) ^ -(value & 1)
