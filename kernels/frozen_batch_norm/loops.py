"""The loops of frozen_batch_norm on the CPU, `forward` and `backward`, and the arithmetic inside them.

A tensor is taken in periods: as many whole rows as make some hundred elements, over which the vectors are repeated, so
that the inner loops are long and contiguous whatever C is. A period stays in the first-level cache while one short loop
after the other works on it: each is a function of its own with few arguments, because a loop over many arrays, which
might overlap, does not vectorise.
"""

import math

import numpy as np
from numba import prange

from ..common.bfloat16 import as_stored, round_, store, wide_of, widen, widened
from ..common.threads import inline, kernel, part
from .definition import ACTIVATIONS

NONE, RELU, RELU6, SILU, HARDSWISH = (
    ACTIVATIONS.index(name) for name in ("none", "relu", "relu6", "silu", "hardswish")
)
ZERO, ONE, THREE, SIX, SIXTH = (np.float32(value) for value in (0, 1, 3, 6, 1 / 6))
HALF, THIRD, LARGEST, LOG2E = (np.float32(value) for value in (0.5, 1 / 3, 87, math.log2(math.e)))
LOG2_HIGH, LOG2_LOW = np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)
E2, E3, E4, E5, E6, E7 = (np.float32(1 / math.factorial(k)) for k in range(2, 8))


@inline
def _sigmoid(z):
    """1 / (1 + exp(-z)); exp(t) = 2^n exp(r) with |r| <= log(2) / 2 (Cody and Waite), in operations that vectorise."""
    t = min(max(-z, -LARGEST), LARGEST)
    n = np.floor(t * LOG2E + HALF)
    r = t - n * LOG2_HIGH - n * LOG2_LOW
    series = ((((((E7 * r + E6) * r + E5) * r + E4) * r + E3) * r + E2) * r + ONE) * r + ONE
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return ONE / (ONE + series * power)


@inline
def _activate(z, activation):
    y = z
    if activation == RELU:
        y = ZERO if z < ZERO else z  # comparisons, not max: NaN stays NaN
    elif activation == RELU6:
        y = ZERO if z < ZERO else (SIX if z > SIX else z)
    elif activation == SILU:
        y = z * _sigmoid(z)
    elif activation == HARDSWISH:
        t = z + THREE
        y = z * (ZERO if t < ZERO else (SIX if t > SIX else t)) * SIXTH
    return y


@inline
def _derivative(z, activation):
    """Derivative of the activation; at its kinks torch's."""
    slope = ONE
    if activation == RELU:
        slope = ONE if z > ZERO else ZERO
    elif activation == RELU6:
        slope = ONE if (z > ZERO) & (z < SIX) else ZERO
    elif activation == SILU:
        sigmoid = _sigmoid(z)
        slope = sigmoid * (ONE + z * (ONE - sigmoid))
    elif activation == HARDSWISH:
        slope = ZERO if z <= -THREE else (z * THIRD + HALF if z < THREE else ONE)
    return slope


@inline
def _repeat(vector, factor, length):
    """float32 [length]: vector * factor, again and again."""
    repeated = np.empty(length, np.float32)
    for i in range(0, length, vector.size):
        for c in range(vector.size):
            repeated[i + c] = vector[c] * factor
    return repeated


@part
def _normalize_as(x, scale, shift, z, activation):
    for i in range(x.size):
        z[i] = _activate(widen(x[i]) * scale[i] + shift[i], activation)


@part
def _normalize(x, scale, shift, z, activation):
    if activation == NONE:
        _normalize_as(x, scale, shift, z, NONE)
    elif activation == RELU:
        _normalize_as(x, scale, shift, z, RELU)
    else:
        _normalize_as(x, scale, shift, z, activation)


@part
def _add_as(z, residual, y, activation):
    for i in range(y.size):
        y[i] = _activate(z[i] + widen(residual[i]), activation)


@part
def _add(z, residual, y, activation):
    if activation == NONE:
        _add_as(z, residual, y, NONE)
    elif activation == RELU:
        _add_as(z, residual, y, RELU)
    else:
        _add_as(z, residual, y, activation)


@part
def _sum(x, center, sum1, sum2):
    for i in range(x.size):
        deviation = widen(x[i]) - center[i]
        sum1[i] += deviation
        sum2[i] += deviation * deviation


@part
def _apply_as(z, y, out, activation):
    for i in range(z.size):
        y[i] = as_stored(out, _activate(z[i], activation))


@part
def _apply(z, y, out, activation):
    if activation == NONE:
        _apply_as(z, y, out, NONE)
    elif activation == RELU:
        _apply_as(z, y, out, RELU)
    else:
        _apply_as(z, y, out, activation)


@part
def _add_moments_gradient(dy, y, mean, offset, slope, dz):
    for i in range(dz.size):
        dz[i] = widen(dy[i]) + ((y[i] - mean[i]) * slope[i] + offset[i])


@part
def _differentiate_as(dy, z, dz, activation):
    for i in range(z.size):
        dz[i] = widen(dy[i]) * _derivative(z[i], activation)


@part
def _differentiate(dy, z, dz, activation):
    if activation == NONE:
        _differentiate_as(dy, z, dz, NONE)
    elif activation == RELU:
        _differentiate_as(dy, z, dz, RELU)
    else:
        _differentiate_as(dy, z, dz, activation)


@part
def _scale(dz, x, scale, mean, offset, slope, dx):
    for i in range(x.size):
        # not x * slope - mean * slope: that cancels when the mean is large
        store(dx, i, widen(dz[i]) * scale[i] + ((widen(x[i]) - mean[i]) * slope[i] + offset[i]))


@inline
def _store_moments(sum1, sum2, num_rows, center, mean, var):
    for c in range(center.size):
        shifted = sum1[c] / num_rows
        mean[c] = center[c] + shifted
        square = sum2[c] / num_rows - shifted * shifted
        var[c] = 0 if square < 0 else square


@part
def _forward_chunk(x, residual, y, scale, shift, center, output_center, sums, activation, has_residual, has_output):
    # scale, shift, center, output_center: float32 [period]; sums: float32 [2 or 4, period]
    period = scale.size
    buffer, second = np.empty(period, np.float32), np.empty(period, np.float32)
    for begin in range(0, x.size, period):
        row, out = x[begin : begin + period], y[begin : begin + period]
        z, wide = buffer[: row.size], wide_of(out, second)
        if has_residual:
            _normalize(row, scale, shift, z, NONE)
            _add(z, residual[begin : begin + period], wide, activation)
        else:
            _normalize(row, scale, shift, wide, activation)
        round_(wide, out)
        _sum(row, center, sums[0], sums[1])
        if has_output:
            _sum(out, output_center, sums[2], sums[3])


@kernel
def forward(
    x, residual, y, scale, shift, center, output_center, mean, var, y_mean, y_var, period, chunk, activation,
    has_residual, has_output,
):  # fmt: skip
    # x, residual, y: float32 [num_rows * C]; the vectors: float32 [C]; period, chunk: in elements
    channels = scale.size
    num_chunks = (x.size + chunk - 1) // chunk
    num_sums = 4 if has_output else 2
    partial = np.zeros((num_chunks, num_sums, channels), np.float64)
    scales, shifts = _repeat(scale, ONE, period), _repeat(shift, ONE, period)
    centers, output_centers = _repeat(center, ONE, period), _repeat(output_center, ONE, period)
    for k in prange(num_chunks):
        here = slice(k * chunk, (k + 1) * chunk)
        sums = np.zeros((num_sums, period), np.float32)
        _forward_chunk(
            x[here], residual[here], y[here], scales, shifts, centers, output_centers, sums, activation, has_residual,
            has_output,
        )  # fmt: skip
        for j in range(num_sums):
            for i in range(0, period, channels):
                for c in range(channels):
                    partial[k, j, c] += sums[j, i + c]
    total = np.zeros((num_sums, channels), np.float64)
    for k in range(num_chunks):
        for j in range(num_sums):
            for c in range(channels):
                total[j, c] += partial[k, j, c]
    num_rows = x.size // channels
    _store_moments(total[0], total[1], num_rows, center, mean, var)
    if has_output:
        _store_moments(total[2], total[3], num_rows, output_center, y_mean, y_var)


@part
def _backward_chunk(
    dy, x, kept, dx, dresidual, scale, shift, mean, offset, slope, y_mean, y_offset, y_slope, activation, has_dy,
    keeps_y, keeps_residual, has_output, has_dresidual,
):  # fmt: skip
    # scale and what follows it: float32 [period]
    period = scale.size
    # buffers of their own, not rows of one array and never both read and written: else the loops do not vectorise
    zero, z_buffer, y_buffer = np.zeros(period, x.dtype), np.empty(period, np.float32), np.empty(period, np.float32)
    total, dz_buffer = np.empty(period, np.float32), np.empty(period, np.float32)
    for begin in range(0, x.size, period):
        end = min(begin + period, x.size)
        size = end - begin
        row, out = x[begin:end], dx[begin:end]
        upstream = dy[begin:end] if has_dy else zero[:size]
        if not has_output and activation == NONE:
            _scale(upstream, row, scale, mean, offset, slope, out)
            continue
        z, y = z_buffer[:size], y_buffer[:size]
        dz = wide_of(dresidual[begin:end], dz_buffer) if has_dresidual else dz_buffer[:size]
        if keeps_y:
            z = widened(kept[begin:end], z)
        elif keeps_residual:
            _normalize(row, scale, shift, y, NONE)
            _add(y, kept[begin:end], z, NONE)
        else:
            _normalize(row, scale, shift, z, NONE)
        if has_output:
            _apply(z, y, out, activation)  # a kept y is its own activation
            _add_moments_gradient(upstream, y, y_mean, y_offset, y_slope, total[:size])
            _differentiate(total[:size], z, dz, activation)
        else:
            _differentiate(upstream, z, dz, activation)
        if has_dresidual:
            round_(dz, dresidual[begin:end])
        _scale(dz, row, scale, mean, offset, slope, out)


@kernel
def backward(
    dy, x, kept, dx, dresidual, scale, shift, mean, dmean, dvar, y_mean, dy_mean, dy_var, period, chunk, activation,
    has_dy, keeps_y, keeps_residual, has_output, has_dresidual,
):  # fmt: skip
    # dy, x, kept, dx, dresidual: float32 [num_rows * C]; the vectors: float32 [C]; period, chunk: in elements
    share = np.float32(1 / (x.size // scale.size))
    scales, shifts, means = _repeat(scale, ONE, period), _repeat(shift, ONE, period), _repeat(mean, ONE, period)
    offsets, slopes = _repeat(dmean, share, period), _repeat(dvar, share + share, period)
    y_means = _repeat(y_mean, ONE, period)
    y_offsets, y_slopes = _repeat(dy_mean, share, period), _repeat(dy_var, share + share, period)
    for k in prange((x.size + chunk - 1) // chunk):
        here = slice(k * chunk, (k + 1) * chunk)
        _backward_chunk(
            dy[here], x[here], kept[here], dx[here], dresidual[here], scales, shifts, means, offsets, slopes, y_means,
            y_offsets, y_slopes, activation, has_dy, keeps_y, keeps_residual, has_output, has_dresidual,
        )  # fmt: skip
