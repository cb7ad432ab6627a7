"""Mean and variance of channels on the CPU, from the sums of chunks."""

import numpy as np

from .memory import memory
from .threads import part

FIRST, SECOND = np.int64(0), np.int64(2)
"""Which of two tensors' sums: the places in `partial` of the input's and of the output's."""


@part
def store_moments(partial, j, num_rows, center, mean, var):
    """Stores mean and biased variance, float32 [C], at two addresses; partial: float64 [chunks, sums, C].

    partial[:, j] and partial[:, j + 1] are sums over num_rows rows in all of x - center and of its square, which are
    added up in index order; center: the address of float32 [C].
    """
    channels = partial.shape[2]
    centers, means = memory(center, channels, np.float32), memory(mean, channels, np.float32)
    variances = memory(var, channels, np.float32)
    for c in range(channels):
        sum1 = sum2 = 0.0
        for k in range(partial.shape[0]):
            sum1 += partial[k, j, c]
            sum2 += partial[k, j + 1, c]
        shifted = sum1 / num_rows
        means[c] = centers[c] + shifted
        square = sum2 / num_rows - shifted * shifted
        variances[c] = 0.0 if square < 0 else square  # NaN stays NaN
