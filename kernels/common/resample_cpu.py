"""Resampling of rows on the CPU: what neighbouring outputs read lies close together, so they are computed as a vector.

LANES outputs are a block, which reads the positions that any of them reads: each with a weight for every lane, zero
where a lane does not read it. That is a third more products than there are weights, and none of the gathers.
"""

import numpy as np

from .bfloat16 import store
from .threads import part
from .vectors import LANES, fused, keep, load, splat

ZERO = np.float32(0)
STEP = 2
"""Positions that are read together: a block reads a multiple of it, so that a line needs as many more elements."""


@part
def num_blocks(num_targets):
    """How many blocks there are of so many targets."""
    return -(-num_targets // LANES)


@part
def num_block_taps(num_taps, apart, of):
    """The most positions that a block reads, if a target reads num_taps, and the next one's lie apart / of further."""
    return -(-(num_taps + 1 - (-(LANES - 1) * apart // of)) // STEP) * STEP


@part
def fill_blocks(position, weight, taps, first, length, lanes):
    """The blocks of targets that read position [taps, targets] with these weights, those above 0.

    first, length: [blocks], where a block begins to read and how far it does; lanes: zeros [blocks, block taps, LANES].
    """
    num_targets = position.shape[1]
    for b in range(len(first)):
        begin, end = b * LANES, min(b * LANES + LANES, num_targets)
        low = high = np.int64(position[0, begin])
        is_first = True
        for i in range(begin, end):
            for t in range(taps):
                if weight[t, i] > 0:
                    p = np.int64(position[t, i])
                    low, high = p if is_first else min(low, p), p + 1 if is_first else max(high, p + 1)
                    is_first = False
        first[b], length[b] = low, -(-(high - low) // STEP) * STEP
        for i in range(begin, end):
            for t in range(taps):
                if weight[t, i] > 0:
                    lanes[b, position[t, i] - low, i - begin] = weight[t, i]


@part
def _three_rows(line0, line1, line2, first, length, weights, num_taps, row0, row1, row2):
    for b in range(first.size):
        sum0 = sum1 = sum2 = splat(ZERO)
        own, start = b * num_taps, first[b]
        for j in range(0, length[b], STEP):
            here = load(weights, (own + j) * LANES)
            at = np.uint64(start + j)
            sum0 = fused(here, splat(line0[at]), sum0)
            sum1 = fused(here, splat(line1[at]), sum1)
            sum2 = fused(here, splat(line2[at]), sum2)
            here = load(weights, (own + j + 1) * LANES)
            at = np.uint64(start + j + 1)
            sum0 = fused(here, splat(line0[at]), sum0)
            sum1 = fused(here, splat(line1[at]), sum1)
            sum2 = fused(here, splat(line2[at]), sum2)
        keep(row0, b * LANES, sum0)
        keep(row1, b * LANES, sum1)
        keep(row2, b * LANES, sum2)


@part
def _one_row(line, first, length, weights, num_taps, row):
    for b in range(first.size):
        total, own, start = splat(ZERO), b * num_taps, first[b]
        for j in range(length[b]):
            total = fused(load(weights, (own + j) * LANES), splat(line[np.uint64(start + j)]), total)
        keep(row, b * LANES, total)


@part
def resample(lines, first, length, lanes, rows):
    """rows[c] = the blocks of lines[c]; lines: [C, positions and STEP more], rows: [C, blocks * LANES], float32."""
    weights, num_taps, c = lanes.ravel(), lanes.shape[1], 0
    while c + 3 <= len(lines):  # three at once, for which a weight is read once
        _three_rows(
            lines[c], lines[c + 1], lines[c + 2], first, length, weights, num_taps, rows[c], rows[c + 1], rows[c + 2]
        )
        c += 3
    for k in range(c, len(lines)):
        _one_row(lines[k], first, length, weights, num_taps, rows[k])


@part
def put_together(rows, first, begin, gain, offset, channels, pixels):
    """pixels[i * channels + c] = rows[first + c, begin + i] * gain[first + c] + offset[first + c], for all pixels."""
    end = begin + pixels.size // channels
    if channels == 3:
        row0, row1, row2 = rows[first, begin:end], rows[first + 1, begin:end], rows[first + 2, begin:end]
        gains, offsets = gain[first : first + 3], offset[first : first + 3]
        for i in range(row0.size):
            store(pixels, 3 * i, fused(row0[i], gains[0], offsets[0]))
            store(pixels, 3 * i + 1, fused(row1[i], gains[1], offsets[1]))
            store(pixels, 3 * i + 2, fused(row2[i], gains[2], offsets[2]))
    elif channels == 1:
        row, factor, base = rows[first, begin:end], gain[first], offset[first]
        for i in range(row.size):
            store(pixels, i, fused(row[i], factor, base))
    else:
        for c in range(first, first + channels):
            row = rows[c, begin:end]
            for i in range(row.size):
                store(pixels, i * channels + c - first, fused(row[i], gain[c], offset[c]))
