"""What README and docs hold besides prose: fenced blocks, code in lines, rows of tables."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(page for page in PAGES if page.parent.name != "reference")]
"""Pages of prose; those of the reference are made from docstrings."""

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and text; file: what its first line names it, as in `# my_data.py`."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        found = re.match(r"# ([\w-]+\.(?:py|toml))\n", self.text)
        return found[1] if found else None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    return [Block(*found) for found in _FENCE.findall(page.read_text())]


def spans(page: Path) -> list[str]:
    """Code within lines, with single spaces."""
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", _FENCE.sub("", page.read_text()))]


def shell_lines(block: Block) -> list[str]:
    """The command lines of a shell block, those that go on in the next line joined, without comments."""
    if block.language not in ("", "bash"):
        return []
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def commands(line: str) -> list[list[str]]:
    """The arguments of every fastcondense in a command line; `a|b` is two commands, one with each."""
    found: list[list[str]] = []
    current: list[str] | None = None
    for word in shlex.split(line, comments=True):
        if " " in word and "fastcondense" in word:
            found += commands(word)  # what is given to a shell, as srun's command
        elif word.endswith(("&&", ";")):
            current = None
        elif word.endswith("fastcondense") or word == "fastcondense.cli":
            current = []
            found.append(current)
        elif current is not None:
            current.append(word)
    variants: list[list[str]] = []
    for arguments in found:
        made: list[list[str]] = [[]]
        for word in arguments:
            made = [[*before, choice] for before in made for choice in word.split("|")]
        variants += made
    return variants


def cells(page: Path) -> list[list[str]]:
    """The rows of a page's tables."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
