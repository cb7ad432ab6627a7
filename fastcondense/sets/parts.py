"""Files that are parts of one set: only their names' numbers, complete and each there once, prove that they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_NUMBERED = re.compile(r"(?P<stem>.*?)[-_.]?(?P<index>\d+)(?:-of-(?P<count>\d+))?")


def in_order(files: Sequence[Path]) -> list[Path]:
    """The files in the order of their numbers, from 0 or 1 on: images_0, images_1 ..., or train-00000-of-00002 ...

    Raises ValueError that lists them if there are several and they are not numbered so, or if one is missing: a single
    one is the whole, unless its name says that it is one of several.
    """
    found = {file: _NUMBERED.fullmatch(file.stem) for file in files}
    if len(files) <= 1 and not any(match and int(match["count"] or 1) > 1 for match in found.values()):
        return list(files)
    listed = ", ".join(file.name for file in files[:4]) + f" and {len(files) - 4} more" * (len(files) > 4)
    where = f"{files[0].parent} has {'several files' if len(files) > 1 else 'one file'}"
    if len({(file.suffix, match and match["stem"], match and match["count"]) for file, match in found.items()}) > 1:
        raise ValueError(f"{where}, {listed}; nothing says that they are parts of one set: name one of them")
    numbered = {int(match["index"]): file for file, match in found.items() if match}
    if len(numbered) < len(files):
        raise ValueError(f"{where}, {listed}; nothing says that they are parts of one set: name one of them")
    match = found[files[0]]
    first = min(numbered)
    count = int(match["count"]) if match and match["count"] else len(files)
    if first > 1 or (match and match["count"] and first):
        first = 0
    missing = next((number for number in range(first, first + count) if number not in numbered), None)
    if missing is not None:
        raise ValueError(f"{where}, {listed}, but no number {missing}: lacks a part, or are they several sets?")
    if len(numbered) > count:
        raise ValueError(f"{where}, {listed}, which are more than the {count} that their names say")
    return [numbered[number] for number in sorted(numbered)]
