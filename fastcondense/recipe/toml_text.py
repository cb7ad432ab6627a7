"""TOML that somebody else may have written: what takes its parser minutes, or its whole stack, is refused first."""

from __future__ import annotations

import re
import tomllib
from typing import Any

_LONGEST = 1_000_000
"""Characters of a text; a recipe with the names of 21,000 classes has a third of that."""
_DEEPEST = 16
"""Parts of a key, and tables and lists inside each other; settings have three."""
_QUOTED = re.compile(
    r'#[^\n]*|"""(?:\\.|[^\\])*?(?:"""|\\?\Z)|' + r"'''.*?(?:'''|\Z)|" + r'"(?:\\[^\n]|[^"\\\n])*+"?|' + r"'[^'\n]*'?",
    re.DOTALL,
)
"""Comments and texts, which may hold anything; those that do not end reach to the end of their line, or of all."""
_LONG_KEY = re.compile(rf"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){{{_DEEPEST}}}")


def parse_toml(text: str | bytes, source: str) -> dict[str, Any]:
    """The tree of a TOML text. Raises ValueError that names the source and says what is wrong with it."""
    try:
        text = (text if isinstance(text, str) else text.decode()).removeprefix("\ufeff")
        _check_depth(text)
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not valid TOML: {error}") from None


def _check_depth(text: str) -> None:
    if len(text) > _LONGEST:
        raise ValueError(f"it has {len(text)} characters, more than {_LONGEST}")
    plain, depth = _QUOTED.sub("s", text), 0
    if (key := _LONG_KEY.search(plain)) is not None:
        raise ValueError(f"the key {key[0][:40]}... has more than {_DEEPEST} parts")
    for bracket in re.findall(r"[\[\]{}]", plain):
        depth += 1 if bracket in "[{" else -1
        if depth > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} tables or lists stand inside each other")
