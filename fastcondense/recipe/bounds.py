"""What settings declare beside their types: bounds (``epochs: Annotated[int, AtLeast(1)]``), and HOW.

HOW marks what says how a run is carried out and decides neither images nor scores: it stands in no hash.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from .typed import hints_of


@dataclass(frozen=True)
class AtLeast:
    """A number that is not below `least`."""

    least: float

    def allows(self, value: float) -> bool:
        """Whether the value is allowed; not a number is not."""
        return value >= self.least

    def __str__(self) -> str:
        return f"be at least {self.least}"


@dataclass(frozen=True)
class Within:
    """A number from `low` to `high`; of the `brackets`, round ones leave their end out."""

    low: float
    high: float
    brackets: str = "[]"

    def allows(self, value: float) -> bool:
        """Whether the value is allowed; not a number is not."""
        is_above = value > self.low or (value == self.low and self.brackets[0] == "[")
        return is_above and (value < self.high or (value == self.high and self.brackets[1] == "]"))

    def __str__(self) -> str:
        return f"lie in {self.brackets[0]}{self.low}, {self.high}{self.brackets[1]}"


@dataclass(frozen=True)
class Positive:
    """A number above zero."""

    def allows(self, value: float) -> bool:
        """Whether the value is allowed; not a number is not."""
        return value > 0

    def __str__(self) -> str:
        return "be positive"


@dataclass(frozen=True)
class OneOf:
    """One of the names, or the user's own code. ``Literal["a", "b"] | str`` is a setting of that kind."""

    names: tuple[str, ...]

    def allows(self, value: str) -> bool:
        """Whether the value is allowed; code is loaded where it is used."""
        return value in self.names or ":" in value

    def __str__(self) -> str:
        return f"be one of {', '.join(self.names)}, or your own module:function"


@dataclass(frozen=True)
class How:
    """The mark of a setting that decides no bit of what a run makes."""


HOW = How()
LARGEST = 2**31 - 1
"""The largest whole number that a setting without bounds of its own may be: tables hold them in 32 bits."""
Count = Annotated[int, AtLeast(1)]
CountOrZero = Annotated[int, AtLeast(0)]
PositiveFloat = Annotated[float, Positive()]
NonNegativeFloat = Annotated[float, AtLeast(0)]
Share = Annotated[float, Within(0, 1)]
ShareAboveZero = Annotated[float, Within(0, 1, "(]")]
Decay = Annotated[float, Within(0, 1, "[)")]


def check_bounds(settings: Any, where: str = "") -> None:
    """Raises ValueError that names the first setting of a dataclass, and of those in it, that is beyond its bounds, too
    large or not finite.

    where: what names begin with. A bound inside a tuple's type is one of its elements.
    """
    hints = hints_of(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        name, value = f"{where}{field.name}", getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            check_bounds(value, f"{name}.")
        bounds = list(_bounded(hints[field.name], value))
        for bound, part in bounds:
            if not bound.allows(part):
                raise ValueError(f"{name} must {bound}, got {value}")
        numbers = value if isinstance(value, tuple) else (value,)
        is_free = not any(isinstance(bound, Within) for bound, _ in bounds)
        if is_free and any(abs(number) > LARGEST for number in numbers if isinstance(number, int)):
            raise ValueError(f"{name} may be at most {LARGEST}, got {value}")
        if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise ValueError(f"{name} must be finite, got {value}")


def deciding(settings: Any) -> dict[str, Any]:
    """The values that decide what a run makes, as a tree: those of all fields of a dataclass that are not HOW."""
    hints = hints_of(type(settings), include_extras=True)
    found = {}
    for field in dataclasses.fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        if HOW not in (typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()):
            found[field.name] = deciding(value) if dataclasses.is_dataclass(value) else value
    return found


def _bounded(hint: Any, value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields each bound of an annotation with the number that it is meant for."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        yield from ((bound, value) for bound in args[1:] if hasattr(bound, "allows"))
        yield from _bounded(args[0], value)
    elif origin in (typing.Union, types.UnionType):
        yield OneOf(typing.get_args(args[0])), value
    elif origin is tuple:
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        for kind, part in zip(kinds, value, strict=True):
            yield from _bounded(kind, part)
