"""MDC's most learnable subset: which size is matched beside the whole set, and what is frozen meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec


@dataclass
class LearnableSubset:
    """The subset of all classes: its fields, which JSON can hold, are a state that a run goes on from.

    Sizes are 1 ... K - 1, as many as there are distances. Iterations are counted from 0.
    """

    period: int
    size: int = 0
    """Size of the subset that is matched now; 0: none yet."""
    learned: list[int] = field(default_factory=list)
    """Sizes whose time is over: their images are frozen while a larger subset is matched."""
    ends: dict[int, int] = field(default_factory=dict)
    """The iteration from which a chosen size is among the learned."""
    distances: list[float] = field(default_factory=list)
    """Distance of each size, when they were last measured."""

    def begin(self, iteration: int) -> None:
        """Adds the sizes that are learned by the beginning of an iteration."""
        self.learned += [size for size, end in self.ends.items() if end == iteration and size not in self.learned]

    @property
    def frozen(self) -> int:
        """The largest learned size below the one that is matched; 0: nothing is frozen."""
        return max((size for size in self.learned if size < self.size), default=0)

    def is_measured(self, iteration: int) -> bool:
        """Whether feature distances are measured in an iteration."""
        return iteration == 0 or (iteration + 1) % self.period == 0

    def choose(self, distances: Sequence[float], iteration: int) -> None:
        """Chooses for the iterations after this one: size 1 first, then that whose distance has changed most."""
        if not distances:
            return
        changes = (
            [abs(old - new) for old, new in zip(self.distances, distances, strict=True)] if self.distances else [1.0]
        )
        self.size = changes.index(max(changes)) + 1
        self.ends[self.size] = iteration + 1 + self.period
        self.distances = list(distances)

    @staticmethod
    def restored(fields: dict[str, Any], largest: int) -> LearnableSubset:
        """The subset whose fields went through JSON, where keys become texts. Raises ValueError if it cannot be one of
        sizes up to the largest.
        """
        made = msgspec.convert(fields, LearnableSubset, str_keys=True)
        sizes = {made.size, *made.learned, *made.ends}
        if made.period < 1 or min(sizes) < 0 or max(sizes) > largest or len(made.distances) not in (0, largest):
            raise ValueError(f"its subsets are not of sizes up to {largest}")
        return made
