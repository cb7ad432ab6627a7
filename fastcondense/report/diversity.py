"""How much the images of a class differ from each other: the mean cosine distance of a network's features."""

from __future__ import annotations

import numpy as np

_NO_NORM = 1e-12


def diversity(features: np.ndarray) -> float:
    """Mean of 1 - cos(f_i, f_j) over the pairs i != j of n features, [n, d]; NaN for fewer than two of them.

    With u_i = f_i / |f_i| the cosines of all ordered pairs sum to |sum_i u_i|^2 - sum_i |u_i|^2. A feature of length
    zero has cosine 0 with every other.
    """
    count = len(features)
    if count < 2:
        return float("nan")
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    units = features / np.maximum(lengths, _NO_NORM)
    cosines = np.square(units.sum(0)).sum() - np.square(units).sum()
    return float(1 - cosines / (count * (count - 1)))
