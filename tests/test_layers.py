"""Imports point downwards only, and importing the package is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKED = ("kernels", "loaders")
PACKAGES = [path.parent for path in (ROOT / "fastcondense").rglob("__init__.py") if path.parent.name not in LINKED]


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, relative ones resolved as if its folder were in fastcondense."""
    package = ["fastcondense"] if path.parent.name == "fastcondense" else ["fastcondense", path.parent.name]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join(base + (node.module.split(".") if node.module else []))
            names |= {stem} | {f"{stem}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("layer", LINKED)
def test_mechanism_imports_nothing_from_above(layer):
    files = sorted((ROOT / layer).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            inside = name == f"fastcondense.{layer}" or name.startswith(f"fastcondense.{layer}.")
            assert not name.startswith("fastcondense") or inside, f"{path} imports {name}"


def test_the_library_imports_no_tests_or_scripts():
    files = sorted(path for package in PACKAGES for path in package.glob("*.py"))
    assert len(files) > 100
    for path in files:
        for name in imported(path):
            assert name.split(".")[0] not in ("tests", "scripts", "benchmarks", "kernels", "loaders"), path


def test_recipes_are_read_without_a_heavy_library():
    code = (
        "import sys; from fastcondense.recipe import recipe; recipe.load('sre2l/digits-ipc1'); "
        "print(sorted({m.split('.')[0] for m in sys.modules}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for name in ("triton", "ffcv", "nvidia", "torch", "numpy", "scipy"):
        assert repr(name) not in found


def test_the_command_line_imports_no_optional_library():
    code = (
        "import sys\nimport fastcondense.cli, fastcondense.kernels.frozen_batch_norm, fastcondense.kernels.crop\n"
        "print('ffcv' in sys.modules, 'nvidia.dali' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert found.split() == ["False", "False"]
