"""Which vectors stand for all of a class, in an order of which every beginning is a choice of its own.

Both rules need inner products alone. Those of whole numbers, as pixels are, are exact in float64 (below 2^53), and
ties go to the first vector; with features the rounding of float64 decides between vectors that are all but equal.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_COLUMNS = 4096  # components that are widened to float64 at a time


def inner_products(vectors: Tensor) -> np.ndarray:
    """vectors: [N, D] of any type and device -> float64 [N, N] on the host."""
    result = torch.zeros(len(vectors), len(vectors), dtype=torch.float64, device=vectors.device)
    for part in vectors.split(_COLUMNS, dim=1):
        wide = part.double()
        result += wide @ wide.T
    return result.cpu().numpy()


def herding(products: np.ndarray, count: int) -> np.ndarray:
    """The first `count` of N vectors as herding picks them, int64 [count] (Welling, ICML'09).

    Greedy: the next one is that with which the mean of all picked so far is nearest to the mean of all N; none is
    picked twice. products: float64 [N, N] of `inner_products`. Minimised is N |(n + 1) mu - S - x|^2 up to a constant,
    where mu is the mean and S the sum of the n picked before.
    """
    num, with_all = len(products), products.sum(1)
    with_picked, is_left, order = np.zeros(num), np.ones(num, dtype=bool), []
    for picked in range(count):
        costs = num * (products.diagonal() + 2 * with_picked) - 2 * (picked + 1) * with_all
        best = int(np.where(is_left, costs, np.inf).argmin())
        is_left[best] = False
        with_picked += products[best]
        order.append(best)
    return np.array(order, dtype=np.int64)


def medoids(products: np.ndarray, count: int) -> np.ndarray:
    """The first `count` of N vectors as greedy medoids, int64 [count].

    The first is the medoid, with the least mean distance to all N; the next is that with which the mean distance to
    the nearest one picked is least (k-medoids' BUILD of Kaufman and Rousseeuw, 1990). products: as for `herding`.
    """
    squares = products.diagonal()[:, None] + products.diagonal() - 2 * products
    distances = np.sqrt(np.maximum(squares, 0))
    nearest, is_left, order = np.full(len(products), np.inf), np.ones(len(products), dtype=bool), []
    for _ in range(count):
        costs = np.minimum(nearest, distances).sum(1)  # row j: if j were picked
        best = int(np.where(is_left, costs, np.inf).argmin())
        is_left[best] = False
        nearest = np.minimum(nearest, distances[best])
        order.append(best)
    return np.array(order, dtype=np.int64)
