"""Says whether a machine has what the code imports, in one line, and which of its versions are known to fail together.

    python scripts/check_machine.py

Exits with 1 if a package is missing: those that pyproject.toml names, for tests too, and those that these need.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

try:
    from packaging.requirements import Requirement
    from packaging.version import Version
except ImportError:
    sys.exit("missing: packaging, which pytest needs too")

ROOT = Path(__file__).resolve().parents[1]
FALLBACKS = {"simplejpeg": "Pillow decodes JPEG in its place"}
TESTING = (
    "pytest",
    "pytest-xdist",
    "hypothesis",
    "pandas",
    "psutil",
    "tabulate",
)  # of the extra dev, what is run there


def wanted() -> list[str]:
    """The requirements of the project, and of its tests on a GPU machine."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tests = [text for text in project["optional-dependencies"]["dev"] if Requirement(text).name in TESTING]
    return [*project["dependencies"], *tests]


def faults(texts: Iterable[str], installed: Callable[[str], str] = version) -> dict[str, str]:
    """The requirements that are not met, those of what is installed too: how each is written down, by package."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    waiting = list(texts)
    while waiting:
        need = Requirement(waiting.pop())
        key = str(need)
        if key in seen or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        seen.add(key)
        try:
            is_met = need.specifier.contains(installed(need.name), prereleases=True)
            waiting += requires(need.name) or []
        except PackageNotFoundError:
            is_met = False
        if not is_met:
            found[need.name] = f"{need.name}{need.specifier}"
    return found


def remarks(versions: dict[str, str]) -> list[str]:
    """What is known of versions that do not go together."""
    triton, numpy = (Version(versions.get(name, "0")) for name in ("triton", "numpy"))
    if Version("0") < triton < Version("3.7") and numpy >= Version("2.4"):
        return [f"Triton {triton}'s interpreter fails with numpy {numpy}: tests that interpret kernels fail here"]
    return []


def main() -> int:
    found = faults(wanted())
    for name in FALLBACKS.keys() & found.keys():
        print(f"{found.pop(name)} is missing: {FALLBACKS[name]}")
    versions = {}
    for name in ("triton", "numpy"):
        if name not in found:
            versions[name] = version(name)
    for text in remarks(versions):
        print(text)
    if found:
        named = " ".join(f"'{text}'" for text in sorted(found.values()))
        print(f"missing or too old: {named}; on a machine with a network: pip download --no-deps -d .wheels {named}")
    else:
        print("all packages are there")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
