"""What every loader of real images offers, and what it is asked. Windows come from outside: no loader draws numbers.

A loader yields the batches that it is given, in that order, so the order of an epoch, its split among ranks and the
place where it resumes are the caller's, and the same for all backends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

WindowsOf = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(sample ids int64 [n], heights [n], widths [n]) -> int32 [n, 7]: top, left, height, width, flip, roll_y, roll_x."""


@dataclass(frozen=True)
class Windowed:
    """Every image is cropped to its window, resized to size x size pixels, mirrored if its flip is set, and rolled."""

    size: int
    windows_of: WindowsOf


@dataclass(frozen=True)
class Centered:
    """The short side is resized to `resize` pixels, then the central size x size square is cut: the evaluation view."""

    size: int
    resize: int


Cut = Windowed | Centered


@dataclass
class Faults:
    """Files that cannot be read: each raises a ValueError that names it, or is left out and listed here."""

    policy: Literal["raise", "skip"] = "raise"
    skipped: dict[int, str] = field(default_factory=dict)
    """Reasons by sample id."""

    def meet(self, sample: int, error: ValueError) -> None:
        """Raises `error`, or lists it."""
        if self.policy == "raise":
            raise error
        self.skipped[sample] = str(error)


class Loader(Protocol):
    """Real images of a data set by sample id."""

    def __len__(self) -> int: ...

    def batches(self, ids: Sequence[np.ndarray], cut: Cut, faults: Faults) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 [B, 3, size, size] RGB, contiguous or channels_last, and sample ids int64 [B], for every array of ids.

        Ids come in the order given; with the policy "skip" those of unreadable files are absent, and a batch that
        loses all its samples is not yielded. Tensors belong to the caller: they are not overwritten later.
        """
        ...
