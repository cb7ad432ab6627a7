# ruff: noqa: ARG001, ARG005 - signatures are those of what is overloaded
"""bfloat16 in numba's loops, which know no such type: maps are viewed as uint16, and arithmetic is float32.

The functions do nothing to float32, so that one loop serves both types: numba compiles it for each.
"""

import numpy as np
from numba import types
from numba.extending import overload

from .threads import inline

HALF, SHIFT, ONE, NAN = np.uint32(0x7FFF), np.uint32(16), np.uint32(1), np.uint16(0x7FC0)


@inline
def _narrow(value):
    """Bits of a float32 rounded to the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> SHIFT) & ONE)
    nearest = np.uint16(np.uint32(np.uint32(bits + HALF) + odd) >> SHIFT)
    return NAN if value != value else nearest


@inline
def _widen(bits):
    return np.uint32(np.uint32(bits) << SHIFT).view(np.float32)


def widen(value):
    """A loaded element: as it is, or a bfloat16 as float32."""
    raise NotImplementedError("for numba's loops only")


@overload(widen)
def _(value):
    if value == types.uint16:
        return lambda value: _widen(value)
    return lambda value: value


def store(array, i, value):
    """array[i] = value, a float32 that is rounded to the array's type."""
    raise NotImplementedError("for numba's loops only")


@overload(store)
def _(array, i, value):
    def rounded(array, i, value):
        array[i] = _narrow(value)

    def plain(array, i, value):
        array[i] = value

    return rounded if array.dtype == types.uint16 else plain


def as_stored(array, value):
    """A float32 as `store` would leave it in the array."""
    raise NotImplementedError("for numba's loops only")


@overload(as_stored)
def _(array, value):
    if array.dtype == types.uint16:
        return lambda array, value: _widen(_narrow(value))
    return lambda array, value: value


def widened(row, buffer):
    """A row as float32: itself, or copied to a buffer that is as long or longer."""
    raise NotImplementedError("for numba's loops only")


@overload(widened)
def _(row, buffer):
    def copied(row, buffer):
        wide = buffer[: len(row)]
        for i in range(row.size):
            wide[i] = _widen(row[i])
        return wide

    def same(row, buffer):
        return row

    return copied if row.dtype == types.uint16 else same


def wide_of(row, buffer):
    """The array where float32 values are made before `round_` stores them in row: row, or a buffer like `widened`'s."""
    raise NotImplementedError("for numba's loops only")


@overload(wide_of)
def _(row, buffer):
    if row.dtype == types.uint16:
        return lambda row, buffer: buffer[: len(row)]
    return lambda row, buffer: row


def round_(wide, row):
    """row[:] = wide, 1-d both, unless they are the same memory."""
    raise NotImplementedError("for numba's loops only")


@overload(round_)
def _(wide, row):
    def rounded(wide, row):
        for i in range(row.size):
            row[i] = _narrow(wide[i])

    def same(wide, row):
        pass

    return rounded if row.dtype == types.uint16 else same
