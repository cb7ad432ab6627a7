"""Settings that are read beside some values of others alone: on the command line, one that changes nothing is refused.

Files may hold such settings: a recipe has those of the files that it extends, whatever it takes of them. And so may a
command line those of whole parts that are not taken (recover.gradients, squeeze.probe): one list of flags may be given
to recipes of many methods.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .typed import hints_of


@dataclass(frozen=True)
class ReadIf:
    """The mark of a setting that is read where another one of its part is, or holds, one of the values.

    Without values, where the other one is neither 0 nor empty.
    """

    other: str
    values: tuple[str, ...] = ()

    def holds(self, part: Any) -> bool:
        """Whether the setting is read among the others of its part."""
        value = getattr(part, self.other)
        if not self.values:
            return bool(value)
        return not set(self.values).isdisjoint(value if isinstance(value, tuple) else (value,))


def check_read(settings: Any, keys: Iterable[str]) -> None:
    """Raises ValueError for the first of the keys that is not read beside the other settings.

    keys: dotted names of settings; other words are passed over.
    """
    for key in keys:
        part, where = settings, ""
        for name in key.split("."):
            hint = hints_of(type(part), include_extras=True).get(name)
            for mark in typing.get_args(hint)[1:]:
                if isinstance(mark, ReadIf) and not mark.holds(part):
                    wanted = f"is {' or '.join(mark.values)}" if mark.values else "is set"
                    found = getattr(part, mark.other)
                    words = " ".join(map(str, found)) or "empty" if isinstance(found, tuple) else found
                    other = f"{where}{mark.other}"
                    raise ValueError(f"{key} is read where {other} {wanted}, and that is {words}; leave it out")
            if hint is None:
                break
            part, where = getattr(part, name), f"{where}{name}."
