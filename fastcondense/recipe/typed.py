"""Values of a TOML file as the annotated types of settings: dataclasses, literals, tuples, numbers and texts."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from typing import Any, Literal


def hints_of(kind: Any, *, include_extras: bool = False) -> dict[str, Any]:
    """Annotations of a dataclass by field, resolved once: each is compiled from its text."""
    return _hints_of(kind, include_extras)


@functools.cache
def _hints_of(kind: type, include_extras: bool) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=include_extras)


def build(kind: Any, value: Any, where: str) -> Any:
    """A TOML value as the annotated type `kind`; `where` is its dotted key.

    Raises ValueError for unknown keys, with the nearest, and for values of another type.
    """
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a table, got {value!r:.80}")
        hints = hints_of(kind)
        for key in value:
            if key not in hints:
                near = difflib.get_close_matches(key[:80], hints, 1, 0.0)[0]
                raise ValueError(f"unknown key {where + key[:80]!r}; the nearest valid one is {where + near!r}")
        built = {
            key: build(hints[key], item, f"{where}{key}." if isinstance(item, dict) else f"{where}{key}")
            for key, item in value.items()
        }
        return typing.cast(type, kind)(**built)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{where.rstrip('.')} must be one of {', '.join(map(str, args))}, got {value!r:.80}")
        return value
    if origin in (typing.Union, types.UnionType):  # a name or the user's own code, which `check` tells apart
        kind = str
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where.rstrip('.')} must be a list, got {value!r:.80}")
        if args[-1] is Ellipsis:
            args = args[:1] * len(value)
        if len(args) != len(value):
            raise ValueError(f"{where} needs {len(args)} values, got {len(value)}")
        return tuple(build(arg, item, where) for arg, item in zip(args, value, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where.rstrip('.')} must be of type {kind.__name__}, got {value!r:.80}")
    return value
