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
from ..common.channel_moments_cpu import FIRST, SECOND, store_moments
from ..common.memory import memory
from ..common.threads import inline, kernel, part
from ..common.vectors import fused
from .definition import ACTIVATIONS

# int64, as the argument is: for a literal of Python's numba would compile a part once more
NONE, RELU, RELU6, SILU, HARDSWISH = (
    np.int64(ACTIVATIONS.index(name)) for name in ("none", "relu", "relu6", "silu", "hardswish")
)
ZERO, ONE, THREE, SIX, SIXTH = (np.float32(value) for value in (0, 1, 3, 6, 1 / 6))
STRIP = 4  # periods, whose sums are taken together
HALF, THIRD, LARGEST, LOG2E = (np.float32(value) for value in (0.5, 1 / 3, 87, math.log2(math.e)))
LOG2_HIGH, LOG2_LOW = np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)
E2, E3, E4, E5, E6, E7 = (np.float32(1 / math.factorial(k)) for k in range(2, 8))


@inline
def _sigmoid(z):
    """1 / (1 + exp(-z)); exp(t) = 2^n exp(r) with |r| <= log(2) / 2 (Cody and Waite), in operations that vectorise."""
    t = min(max(-z, -LARGEST), LARGEST)
    n = np.floor(fused(t, LOG2E, HALF))
    r = fused(-n, LOG2_LOW, fused(-n, LOG2_HIGH, t))
    series = fused(fused(fused(fused(E7, r, E6), r, E5), r, E4), r, E3)
    series = fused(fused(fused(series, r, E2), r, ONE), r, ONE)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return ONE / fused(series, power, ONE)


@inline
def _relu(z):
    return ZERO if z < ZERO else z  # a comparison, not max: NaN stays NaN


@inline
def _activate(z, activation):
    y = z
    if activation == RELU:
        y = _relu(z)
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
        slope = sigmoid * fused(z, ONE - sigmoid, ONE)
    elif activation == HARDSWISH:
        slope = ZERO if z <= -THREE else (fused(z, THIRD, HALF) if z < THREE else ONE)
    return slope


@part
def _repeat(vector, factor, channels, repeated):
    """Fills `repeated` with a vector at an address times factor, again and again; zeros if there is none."""
    values = memory(vector, channels, np.float32)
    for i in range(0, repeated.size, channels):
        for c in range(channels):
            repeated[i + c] = values[c] * factor if vector != 0 else ZERO


@part
def _normalize(x, scale, shift, z, activation):
    """z = x * scale + shift, and the ReLU of it if that is the activation."""
    if activation == RELU:
        for i in range(x.size):
            z[i] = _relu(fused(widen(x[i]), scale[i], shift[i]))
    else:
        for i in range(x.size):
            z[i] = fused(widen(x[i]), scale[i], shift[i])


@part
def _add(z, residual, y, activation):
    """y = z + residual, and the ReLU of it if that is the activation."""
    if activation == RELU:
        for i in range(y.size):
            y[i] = _relu(z[i] + widen(residual[i]))
    else:
        for i in range(y.size):
            y[i] = z[i] + widen(residual[i])


@part
def _apply(z, y, like, activation):
    """y = activation(z), rounded to the type of `like`."""
    if activation == RELU:
        for i in range(z.size):
            y[i] = as_stored(like, _relu(z[i]))
    else:
        for i in range(z.size):
            y[i] = as_stored(like, _activate(z[i], activation))


@part
def _sum_four(row0, row1, row2, row3, center, sum1, sum2):
    for i in range(center.size):
        d0, d1 = widen(row0[i]) - center[i], widen(row1[i]) - center[i]
        d2, d3 = widen(row2[i]) - center[i], widen(row3[i]) - center[i]
        sum1[i] = (((sum1[i] + d0) + d1) + d2) + d3
        sum2[i] = fused(d3, d3, fused(d2, d2, fused(d1, d1, fused(d0, d0, sum2[i]))))


@part
def _sum(x, center, sum1, sum2):
    """Adds rows of x - center and of its square: four at once, which load and store the sums once."""
    period = center.size
    whole = x.size // (STRIP * period) * STRIP * period
    for i in range(0, whole, STRIP * period):
        row0, row1 = x[i : i + period], x[i + period : i + 2 * period]
        _sum_four(
            row0, row1, x[i + 2 * period : i + 3 * period], x[i + 3 * period : i + 4 * period], center, sum1, sum2
        )
    for begin in range(whole, x.size, period):
        row = x[begin : begin + period]
        for i in range(row.size):
            deviation = widen(row[i]) - center[i]
            sum1[i] += deviation
            sum2[i] = fused(deviation, deviation, sum2[i])


@part
def _add_moments_gradient(dy, y, mean, offset, slope, dz):
    for i in range(dz.size):
        dz[i] = widen(dy[i]) + fused(y[i] - mean[i], slope[i], offset[i])


@part
def _differentiate(dy, z, dz, activation):
    if activation == RELU:
        for i in range(z.size):
            dz[i] = widen(dy[i]) * (ONE if z[i] > ZERO else ZERO)
    else:
        for i in range(z.size):
            dz[i] = widen(dy[i]) * _derivative(z[i], activation)


@part
def _scale(dz, x, scale, mean, offset, slope, dx):
    for i in range(x.size):
        # not x * slope - mean * slope: that cancels when the mean is large
        store(dx, i, fused(widen(dz[i]), scale[i], fused(widen(x[i]) - mean[i], slope[i], offset[i])))


@part
def _scale_alone(dz, scale, dx):
    for i in range(dx.size):
        store(dx, i, widen(dz[i]) * scale[i])


@part
def _forward_chunk(k, like, x, residual, y, vectors, partial, size, chunk, activation):
    """Elements [k * chunk, (k + 1) * chunk) of y, and their sums: partial [chunks, 0, 2 or 4, channels]."""
    x, y, has_residual = memory(x, size, like), memory(y, size, like), residual != 0
    residual = memory(residual, size, like)
    scale, shift, center, output_center = vectors[0], vectors[1], vectors[2], vectors[3]  # [period] each
    period, is_other = scale.size, activation > RELU
    num_sums, channels = partial.shape[1:]
    sums = np.zeros((num_sums, period), np.float32)
    first_buffer, second_buffer, third_buffer = (
        np.empty(period, np.float32), np.empty(period, np.float32), np.empty(period, np.float32),
    )  # fmt: skip
    end = min((k + 1) * chunk, size)
    for strip in range(k * chunk, end, STRIP * period):
        last = min(strip + STRIP * period, end)
        for begin in range(strip, last, period):
            row, out = x[begin : min(begin + period, last)], y[begin : min(begin + period, last)]
            wide = wide_of(out, first_buffer)
            z = second_buffer[: row.size] if is_other else wide
            if has_residual:
                linear = third_buffer[: row.size]
                _normalize(row, scale, shift, linear, NONE)
                _add(linear, residual[begin : begin + row.size], z, activation)
            else:
                _normalize(row, scale, shift, z, activation)
            if is_other:
                _apply(z, wide, z, activation)
            round_(wide, out)
        if num_sums > 0:
            _sum(x[strip:last], center, sums[0], sums[1])
        if num_sums == 4:
            _sum(y[strip:last], output_center, sums[2], sums[3])
    for j in range(num_sums):
        for i in range(0, period, channels):
            for c in range(channels):
                partial[k, j, c] += sums[j, i + c]


@kernel
def forward(
    like, x, residual, y, scale, shift, center, output_center, mean, var, y_mean, y_var, size, channels, period, chunk,
    activation,
):  # fmt: skip
    # x, residual, y: [size], of the type of `like`; the vectors: float32 [channels]; 0 for what is missing
    has_moments, has_output = center != 0, output_center != 0
    vectors = np.empty((4, period), np.float32)
    _repeat(scale, ONE, channels, vectors[0])
    _repeat(shift, ONE, channels, vectors[1])
    _repeat(center, ONE, channels, vectors[2])
    _repeat(output_center, ONE, channels, vectors[3])
    num_chunks = (size + chunk - 1) // chunk
    partial = np.zeros((num_chunks, 4 if has_output else 2 if has_moments else 0, channels), np.float64)
    for k in prange(num_chunks):
        _forward_chunk(np.int64(k), like, x, residual, y, vectors, partial, size, chunk, activation)
    if has_moments:
        store_moments(partial, FIRST, size // channels, center, mean, var)
    if has_output:
        store_moments(partial, SECOND, size // channels, output_center, y_mean, y_var)


@part
def _backward_chunk(
    k, like, dy, x, kept, dx, dresidual, vectors, size, chunk, activation, keeps_y, has_moments, has_output
):
    """Elements [k * chunk, (k + 1) * chunk) of dx, and of dresidual if there is one."""
    has_dy, is_kept, has_dresidual = dy != 0, kept != 0, dresidual != 0
    x, dx, dy = memory(x, size, like), memory(dx, size, like), memory(dy, size, like)
    kept, dresidual = memory(kept, size, like), memory(dresidual, size, like)
    scale, shift, mean, offset, slope = vectors[0], vectors[1], vectors[2], vectors[3], vectors[4]  # [period] each
    period = scale.size
    # buffers of their own, not rows of one array and never both read and written: else the loops do not vectorise
    zero, z_buffer, y_buffer = np.zeros(period, like.dtype), np.empty(period, np.float32), np.empty(period, np.float32)
    total_buffer, dz_buffer = np.empty(period, np.float32), np.empty(period, np.float32)
    last = min((k + 1) * chunk, size)
    for begin in range(k * chunk, last, period):
        end = min(begin + period, last)
        row, out, upstream = x[begin:end], dx[begin:end], dy[begin:end] if has_dy else zero[: end - begin]
        if not has_output and activation == NONE:
            if has_moments:
                _scale(upstream, row, scale, mean, offset, slope, out)
            else:
                _scale_alone(upstream, scale, out)
            continue
        z, y, total = z_buffer[: row.size], y_buffer[: row.size], total_buffer[: row.size]
        dz = wide_of(dresidual[begin:end], dz_buffer) if has_dresidual else dz_buffer[: row.size]
        if keeps_y:
            z = widened(kept[begin:end], z)
        elif is_kept:
            _normalize(row, scale, shift, y, NONE)
            _add(y, kept[begin:end], z, NONE)
        else:
            _normalize(row, scale, shift, z, NONE)
        if has_output:
            if keeps_y:
                y = z  # its own activation
            else:
                _apply(z, y, out, activation)
            _add_moments_gradient(upstream, y, vectors[5], vectors[6], vectors[7], total)
            _differentiate(total, z, dz, activation)
        else:
            _differentiate(upstream, z, dz, activation)
        if has_dresidual:
            round_(dz, dresidual[begin:end])
        if has_moments:
            _scale(dz, row, scale, mean, offset, slope, out)
        else:
            _scale_alone(dz, scale, out)


@kernel
def backward(
    like, dy, x, kept, dx, dresidual, scale, shift, mean, dmean, dvar, y_mean, dy_mean, dy_var, size, channels, period,
    chunk, activation, keeps_y,
):  # fmt: skip
    # dy, x, kept, dx, dresidual: [size], of the type of `like`; the vectors: float32 [channels]; 0 for what is missing
    share = np.float32(1 / (size // channels))
    vectors = np.empty((8, period), np.float32)
    _repeat(scale, ONE, channels, vectors[0])
    _repeat(shift, ONE, channels, vectors[1])
    _repeat(mean, ONE, channels, vectors[2])
    _repeat(dmean, share, channels, vectors[3])
    _repeat(dvar, share + share, channels, vectors[4])
    _repeat(y_mean, ONE, channels, vectors[5])
    _repeat(dy_mean, share, channels, vectors[6])
    _repeat(dy_var, share + share, channels, vectors[7])
    has_moments, has_output = dmean != 0 or dvar != 0, dy_mean != 0 or dy_var != 0
    for k in prange((size + chunk - 1) // chunk):
        _backward_chunk(
            np.int64(k), like, dy, x, kept, dx, dresidual, vectors, size, chunk, activation, keeps_y, has_moments,
            has_output,
        )  # fmt: skip
