"""README's generated tables in docs/ (a hook of MkDocs): `<!-- README: accuracy -->` becomes that part of README."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with README's parts, those between <!-- NAME: begin --> and <!-- NAME: end -->, where it names them."""
    return re.sub(r"<!-- README: (.+?) -->", lambda found: part(found[1]), markdown)


def part(name: str) -> str:
    """Raises ValueError if README has no part of that name."""
    begin, end = (f"<!-- {name}: {mark} -->" for mark in ("begin", "end"))
    found = re.search(f"{re.escape(begin)}\n(.*?){re.escape(end)}", README.read_text(), re.DOTALL)
    if found is None:
        raise ValueError(f"README.md has no part between {begin} and {end}")
    return found[1]
