"""Tiers: sizes of a set whose labels need no image beyond them (spec sre2l_cda_scdd_rded_mdc 5.6, nested labels)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Tiers:
    """Numbers of images that do not depend on the size of their set, and which partners they may have.

    An image's number is slot * classes + class; the images of the first n slots have the numbers below n * classes.
    Samples are numbered class by class, as `CondensedSet.flat` gives them.
    """

    def __init__(self, tiers: Sequence[int], num_images: int, num_classes: int):
        self.num_classes, self.ipc = num_classes, num_images // num_classes
        slots = np.arange(self.ipc)
        sizes = np.array([*(tier for tier in tiers if tier < self.ipc), self.ipc])
        self.sizes = sizes[np.searchsorted(sizes, slots, side="right")]
        """Of the smallest tier that each slot is in; beyond all tiers it is the whole set."""

    def numbers(self, ids: np.ndarray) -> np.ndarray:
        """Of the samples `ids`, int64."""
        return ids % self.ipc * self.num_classes + ids // self.ipc

    def partners(self, ids: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Samples drawn by u in [0, 1) from the tiers of the samples `ids`, or smaller ones."""
        drawn = np.floor(u * (self.sizes[ids % self.ipc] * self.num_classes)).astype(np.int64)
        return drawn % self.num_classes * self.ipc + drawn // self.num_classes
