"""BPS's choice of real images: half from the centres of a class's patterns, half from their margins, without noise.

Shi, Liang and Wen, "Balanced Dataset Distillation via Modeling Multiple Visual Pattern Distribution", CVPR'26, as their
code does it, but for these: patterns are clusters of k-means in a teacher's features, not of Infomap in those of an
encoder that is trained for it; entropies are the teacher's; and the choice has an order, of which every beginning is a
choice of its own, so shares of patterns are Webster's, and a pattern's margin does not depend on the number chosen.
"""

from __future__ import annotations

import numpy as np
import torch

from .selection import inner_products, medoids

PATTERNS = 5
"""Patterns of a class, at most."""
_CANDIDATES = 0.1  # share of a pattern's images, those of the highest entropy, among which noise is looked for
_FEWEST = 10  # images of a pattern, and candidates, that are enough to look


def balanced(vectors: np.ndarray, entropies: np.ndarray, count: int) -> np.ndarray:
    """The first `count` of N images of a class, int64 [count].

    vectors: float64 [N, D], features; entropies: float64 [N] of the teacher's answers. Images go to patterns by
    Webster's method; a pattern gives the image nearest to its centre, then the first of its margin, and so on in turns.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(lengths > 0, lengths, 1)
    labels = patterns(units, min(PATTERNS, len(np.unique(units, axis=0))))
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    turns = [own[_in_turns(by_center(units[own]), margin(entropies[own]))] for own in members]
    sizes, seats, order = [len(own) for own in members], [0] * len(members), []
    for _ in range(count):
        claims = [size / (2 * seat + 1) if seat < size else -1.0 for size, seat in zip(sizes, seats, strict=True)]
        best = int(np.argmax(claims))
        order.append(turns[best][seats[best]])
        seats[best] += 1
    return np.array(order, dtype=np.int64)


def patterns(units: np.ndarray, count: int) -> np.ndarray:
    """The pattern of each unit vector, float64 [N, D] -> int [N]: k-means that begins with the greedy medoids."""
    from sklearn.cluster import KMeans  # takes a second to import
    from threadpoolctl import threadpool_limits

    first = units[medoids(inner_products(torch.from_numpy(units)), count)]
    with threadpool_limits(1):  # sums of several threads are rounded differently from time to time
        return KMeans(count, init=first, n_init=1).fit(units).labels_


def by_center(units: np.ndarray) -> np.ndarray:
    """Unit vectors by their cosine with the direction of their mean, the most similar first; ties by place."""
    return np.argsort(-(units @ units.mean(0)), kind="stable")


def margin(entropies: np.ndarray) -> np.ndarray:
    """Images of a pattern from its margin inwards, by the entropies of the teacher's answers; noise comes last.

    First those from the margin's mean up to the bound of noise, ascending; then those below, descending; last, beyond
    the bound, ascending.
    """
    low, high = noise_bounds(entropies)
    ascending = np.argsort(entropies, kind="stable")
    sorted_ = entropies[ascending]
    is_first, is_below = (sorted_ >= low) & (sorted_ <= high), sorted_ < low
    return np.concatenate([ascending[is_first], ascending[is_below][::-1], ascending[~is_first & ~is_below]])


def noise_bounds(entropies: np.ndarray) -> tuple[float, float]:
    """The mean of the margin's entropies, and the value from which on an image is more probably noise.

    Two normal distributions are fitted to the highest entropies, the margin and noise; the bound is where their
    weighted densities cross between their means. (inf, inf) where there are too few, or none that differ: the highest
    entropy is then the margin's first.
    """
    count = max(int(len(entropies) * _CANDIDATES), min(_FEWEST, len(entropies)))
    candidates = np.sort(entropies)[len(entropies) - count :]
    if count < _FEWEST or candidates[0] == candidates[-1]:
        return np.inf, np.inf
    from sklearn.mixture import GaussianMixture  # takes a second to import

    means = np.quantile(candidates, [0.25, 0.75])
    mixture = GaussianMixture(
        2,
        weights_init=[0.5, 0.5],
        means_init=means[:, None],
        precisions_init=np.full((2, 1, 1), 1 / candidates.var()),
        reg_covar=1e-6 * candidates.var(),
        random_state=0,
    ).fit(candidates[:, None])
    (low, high), order = np.sort(mixture.means_[:, 0]), np.argsort(mixture.means_[:, 0])
    (v, w), (a, b) = mixture.covariances_[order, 0, 0], mixture.weights_[order]
    # log a - (x - low)^2 / 2 v - log(v) / 2 = log b - (x - high)^2 / 2 w - log(w) / 2
    square, line = 1 / (2 * w) - 1 / (2 * v), low / v - high / w
    constant = high**2 / (2 * w) - low**2 / (2 * v) + np.log(a / b) + np.log(w / v) / 2
    roots = np.roots([square, line, constant])
    between = [root.real for root in roots if abs(root.imag) == 0 and low < root.real < high]
    return float(low), float(between[0]) if between else np.inf


def _in_turns(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Members of two orders of the same numbers, one of the first, one of the second, and so on; each number once."""
    order: list[int] = []
    seen, heads = np.zeros(len(first), dtype=bool), (iter(first), iter(second))
    while len(order) < len(first):
        best = next(place for place in heads[len(order) % 2] if not seen[place])
        seen[best] = True
        order.append(best)
    return np.array(order, dtype=np.int64)
