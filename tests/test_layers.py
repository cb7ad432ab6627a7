"""Rooms stand in one order, every import points to an earlier room, and no files import each other in a circle."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastcondense"
GROUND = (
    "__init__",
    "words",
    "command_line",
    "records",
    "student_records",
    "trust",
    "files",
    "tensor_files",
    "leftovers",
    "restricted_pickle",
    "rng",
    "devices",
    "vision",
    "user_functions",
    "tracking",
    "log",
)
ROOMS = (
    "kernels",
    "loaders",
    "ground",
    "recipe",
    "workers",
    "views",
    "data",
    "run",
    "networks",
    "teachers",
    "squeeze",
    "statistics",
    "sets",
    "recover",
    "labels",
    "students",
    "report",
    "exchange",
    "plan",
    "options",
    "stages",
    "session",
    "api",
    "cli",
)
"""Low to high. `recipe` imports nothing of ours but how files are read, so that anything may read settings."""


def modules() -> dict[str, Path]:
    """Files by their dotted name below fastcondense, a package by its own; kernels and loaders through their links."""
    found = {}
    for folder in (PACKAGE, PACKAGE / "kernels", PACKAGE / "loaders"):
        for path in folder.rglob("*.py"):
            found[".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    """Where a module stands."""
    top = module.partition(".")[0]
    return "ground" if top in GROUND else top


def imported(module: str) -> set[str]:
    """Modules of fastcondense that a file imports, wherever in it; and names of other tops, as they are."""
    path, found = MODULES[module], set()
    package = module.split(".") if path.name == "__init__.py" and module != "__init__" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names} - sys.stdlib_module_names  # not ours, which may be called so
            found |= {name.removeprefix("fastcondense.") for name in names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join(base + (node.module.split(".") if node.module else [])).removeprefix("fastcondense.")
            names = {f"{stem}.{alias.name}".removeprefix(".") for alias in node.names}
            found |= {name if name in MODULES else stem for name in names}
    return found - {module, ""}


def test_every_module_stands_in_a_room():
    assert len(MODULES) > 150
    assert {room(module) for module in MODULES} == set(ROOMS)


def test_imports_point_to_earlier_rooms():
    upward = [
        f"{module} imports {name}"
        for module in MODULES
        for name in imported(module)
        if module != "__init__"  # the door to the API, for type checkers alone
        if name in MODULES and ROOMS.index(room(name)) > ROOMS.index(room(module))
    ]
    assert not sorted(upward)


@pytest.mark.parametrize("mechanism", ["kernels", "loaders"])
def test_mechanism_imports_nothing_of_the_method(mechanism):
    for module in MODULES:
        if room(module) == mechanism:
            assert {room(name) for name in imported(module) if name in MODULES} <= {mechanism}, module


def test_no_files_import_each_other_in_a_circle():
    arrows = {module: [name for name in imported(module) if name in MODULES] for module in MODULES}
    list(graphlib.TopologicalSorter(arrows).static_order())  # raises CycleError, which names the circle


def test_the_library_imports_no_tests_or_scripts():
    for module in MODULES:
        assert not {name.partition(".")[0] for name in imported(module)} & {"tests", "scripts", "benchmarks"}, module


def test_stages_and_the_command_line_alone_print():
    """Others return tables, or say a line by `Log.say`; ruff's T20 refuses `print` itself."""
    printing = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("console", "stdout", "stderr") and module != "log"
    }
    assert printing == {"stages", "cli"}


def test_a_class_name_occurs_once():
    """But for the autograd functions of an operator, of which each back end has one, in the place of the other."""
    files: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                files.setdefault(node.name, []).append(module)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):  # a type with a name
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                for name in (name for name in names if name[:1].isupper() and not name.isupper()):
                    files.setdefault(name, []).append(module)
    several = [sorted(found) for found in files.values() if len(found) > 1]
    operators = [found[0].removesuffix(".cpu") for found in several]
    assert several == [[f"{name}.cpu", f"{name}.gpu"] for name in operators]


def heavy_modules_after(code: str) -> set[str]:
    """Top-level names of the modules that are loaded after `code`."""
    code += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules}, 'nvidia.dali' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return set(found.split())


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import fastcondense", {"torch", "triton", "ffcv", "nvidia", "numpy"}),
        (
            "from fastcondense.recipe import recipe; recipe.load('sre2l/digits-ipc1')",
            {"torch", "triton", "ffcv", "nvidia", "numpy", "scipy"},
        ),
        ("import fastcondense.cli, fastcondense.kernels.frozen_batch_norm", {"ffcv", "True"}),
    ],
    ids=["package", "recipes", "command line"],
)
def test_what_importing_does_not_load(code, heavy):
    assert not heavy_modules_after(code) & heavy
