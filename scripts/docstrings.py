"""Docstrings as the reference shows them: `<class>/<image>` in them is text, not HTML (an extension of griffe)."""

from __future__ import annotations

import html
import re
from typing import Any

import griffe


class Text(griffe.Extension):
    """Escapes &, < and > of every docstring but in code, where Markdown does."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = escape(obj.docstring.value)


def escape(text: str) -> str:
    """`a < b` outside of backticks as HTML's entities."""
    parts = re.split(r"(``.*?``|`[^`]*`)", text, flags=re.S)
    return "".join(part if part.startswith("`") else html.escape(part, quote=False) for part in parts)
