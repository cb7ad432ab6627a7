"""Parts of README and docs that scripts write: what stands between <!-- NAME: begin --> and <!-- NAME: end -->."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fastcondense.files import write_atomic


def read_pages(root: Path) -> dict[Path, str]:
    """README.md and the pages of docs/, with their texts."""
    return {path: path.read_text() for path in (root / "README.md", *sorted((root / "docs").glob("*.md")))}


def replaced(pages: Mapping[Path, str], name: str, made: str) -> dict[Path, str]:
    """The pages with `made` as the part of that name. Raises ValueError unless they have exactly one."""
    begin, end = (f"<!-- {name}: {mark} -->" for mark in ("begin", "end"))
    holders = [path for path, text in pages.items() if begin in text or end in text]
    if len(holders) == 1:
        text = pages[holders[0]]
        parts = re.split(f"{re.escape(begin)}.*{re.escape(end)}", text, flags=re.DOTALL)
        if len(parts) == 2 and text.count(begin) == text.count(end) == 1:
            return {**pages, holders[0]: f"{begin}\n{made}\n{end}".join(parts)}
    raise ValueError(f"README.md and docs/ need the markers {begin} and {end}, once each and in this order")


def write_or_check(wanted: Mapping[Path, str], is_check: bool, command: str) -> None:
    """Writes the files; or raises ValueError for the first that is not as wanted, with the command that writes it."""
    for path, text in wanted.items():
        if path.exists() and path.read_text() == text:
            continue
        if is_check:
            raise ValueError(f"{path.name} is not up to date: python benchmarks/{command}")
        write_atomic(path, text.encode())
