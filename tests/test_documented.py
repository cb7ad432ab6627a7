"""Commands, flags, settings, recipes and messages that README and docs name are those that there are."""

import argparse
import ast
import contextlib
import dataclasses
import importlib
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from documents import ROOT, WRITTEN, blocks, cells, commands, shell_lines, spans

from fastcondense import cli, command_line, options
from fastcondense.recipe import recipe
from fastcondense.sets import sealed_zip

NAME = "sre2l/digits-ipc10"
PLACEHOLDERS = {"RUN-or-BUNDLE": "RUN", "NAME-or-FILE": NAME, "NAME": NAME, "METHOD/digits-ipc10": NAME}
PARTS = ("dataset", "squeeze", "recover", "labels", "train", "evaluate", "ranking")


def dotted(tree: dict[str, Any], prefix: str = "") -> set[str]:
    """Names of all fields of a tree of settings, with their parts."""
    inner = [dotted(value, f"{prefix}{name}.") for name, value in tree.items() if isinstance(value, dict)]
    return {f"{prefix}{name}" for name in tree}.union(*inner)


def fields(kind: type) -> set[str]:
    """Names of a dataclass's fields; those of one that is a field stand beside its own."""
    inner = (field.default_factory for field in dataclasses.fields(kind))
    return {field.name for field in dataclasses.fields(kind)}.union(
        *(fields(one) for one in inner if isinstance(one, type) and dataclasses.is_dataclass(one))
    )


SETTINGS = {name.replace("_", "-") for name in dotted(dataclasses.asdict(recipe.Recipe()))}
TOOLS = [getattr(importlib.import_module(f"fastcondense.{module}"), kind) for module, _, kind, _ in cli.TOOLS.values()]
KINDS = (options.Options, *options.Options.__subclasses__(), *TOOLS)
FLAGS = SETTINGS | {name.replace("_", "-") for kind in KINDS for name in fields(kind)}
BENCHMARKS = {
    flag
    for folder in ("benchmarks", "scripts")
    for path in (ROOT / folder).glob("*.py")
    for flag in re.findall(r'"--([\w-]+)"', path.read_text())
}


def documented() -> list[tuple[str, list[str]]]:
    """Every fastcondense command with the page that shows it; in lines of prose, those with arguments."""
    found = []
    for page in WRITTEN:
        lines = [line for block in blocks(page) for line in shell_lines(block)]
        lines += [span for span in spans(page) if re.match(r"fastcondense \w+ \S|torchrun .*fastcondense", span)]
        found += [(page.name, arguments) for line in lines for arguments in commands(line)]
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with what commands name: runs, bundles, and the files that pages show."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for page in WRITTEN:
        for block in blocks(page):
            if block.file is not None:
                (tmp_path / block.file).write_text(block.text)
    return tmp_path


def make_run(path: Path) -> None:
    """What the command line reads of a run, or of a bundle."""
    name = path.relative_to("runs").as_posix() if path.parts[0] == "runs" else NAME
    text = recipe.load(name if name.rpartition("-ipc")[0] in recipe.names() else NAME).to_toml()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with sealed_zip.writing(path) as archive:
            archive.put("recipe.toml", text.encode())
    else:
        path.mkdir(exist_ok=True)
        (path / "recipe.toml").write_text(text)


class _Parsed(Exception):
    pass


def parse(arguments: Sequence[str]) -> None:
    """Runs a command up to where it has parsed its arguments. Raises what it raises: ValueError or SystemExit."""
    command, *rest = [PLACEHOLDERS.get(word, word) for word in arguments]
    if command in cli.STAGES and rest and not rest[0].startswith("-"):
        make_run(Path(rest[0]))
    if command == "bench" and len(rest) == 1:
        rest = [*rest, "--help"]  # a benchmark's name alone
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(_Parsed):
        stop_after(patch, options, "parse")
        stop_after(patch, command_line, "parse")
        patch.setattr(cli, "subprocess", SimpleNamespace(run=lambda command: launch(patch, *map(str, command[1:]))))
        if status := cli._main([command, *rest]):
            raise SystemExit(status)


def stop_after(patch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """A call of the owner's function raises _Parsed where it would return."""
    real = getattr(owner, name)

    def stop(*args, **kwargs):
        real(*args, **kwargs)
        raise _Parsed

    patch.setattr(owner, name, stop)


def launch(patch: pytest.MonkeyPatch, script: str, *arguments: str) -> None:
    """Runs a benchmark in this process in place of another."""
    stop_after(patch, argparse.ArgumentParser, "parse_args")
    patch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(script, run_name="__main__")
    raise AssertionError(f"{script} parses no arguments")


@pytest.mark.usefixtures("folder")
def test_every_command_is_parsed_by_the_command_line(capsys):
    found = documented()
    assert len(found) > 50 and {"README.md", "quick-start.md", "imagenet.md", "own.md"} <= {page for page, _ in found}
    wrong = []
    for arguments, page in {tuple(arguments): page for page, arguments in found}.items():
        try:
            parse(arguments)
        except (ValueError, SystemExit) as error:
            if not (isinstance(error, SystemExit) and error.code == 0):  # after its help
                wrong.append(f"{page}: fastcondense {' '.join(arguments)}: {error} {capsys.readouterr().err[-200:]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "fastcondense run --recipe sre2l/digits-ipc10 --recover.iteration 5",
        "fastcondense run --recipe sre2l/nothing-ipc10",
        "fastcondense train RUN --train.epochs many",
        "fastcondense pack --data DIR --outs DIR",
        "fastcondense bench recover_step --statistics all",
        "fastcondense bench nothing",
        "fastcondense condense RUN",
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_wrong_command_would_be_found(line):
    (arguments,) = commands(line)
    with pytest.raises((ValueError, SystemExit, AssertionError)):
        parse(arguments)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (". .venv/bin/activate && fastcondense export RUN --format folder|fkd  # two", ["folder", "fkd"]),
        (".venv/bin/fastcondense recipes", ["recipes"]),
        ("srun bash -c 'torchrun -m fastcondense.cli train RUN ' ; fastcondense inspect DIR", ["RUN", "DIR"]),
        ("pip install fastcondense-wheel", []),
    ],
)
def test_commands_are_found_where_they_stand(line, found):
    assert [arguments[-1] for arguments in commands(line)] == found


def test_scripts_and_modules_that_are_called_exist():
    called = set()
    for page in WRITTEN:
        for line in (line for block in blocks(page) for line in shell_lines(block)):
            called |= set(re.findall(r"(?:bash|python) ((?:scripts|benchmarks)/\S+)", line))
    assert {"scripts/quickstart.sh", "scripts/setup.sh", "scripts/test.sh", "benchmarks/tables.py"} <= called
    assert all((ROOT / path).is_file() for path in called)


def test_flags_and_settings_in_prose_exist():
    seen, wrong = 0, []
    for page in WRITTEN:
        for span in spans(page):
            flags = re.findall(r"--[a-z][\w.-]*", span) if span.startswith("--") else []
            setting = re.match(rf"({'|'.join(PARTS)})\.[a-z][\w.-]*", span)
            if setting and not setting[0].endswith((".beton", ".npz", ".json", ".py")):
                flags.append(setting[0])
            for name in (flag.removeprefix("--").replace("_", "-").rstrip(".") for flag in flags):
                seen += 1
                if name not in FLAGS | BENCHMARKS:
                    wrong.append(f"{page.name}: {name}")
    assert seen > 60 and not wrong, wrong


def test_recipes_that_are_shown_can_be_loaded(folder):
    files = [block.file for page in WRITTEN for block in blocks(page) if block.language == "toml"]
    assert len(files) >= 2
    for file in files:
        assert recipe.load(str(folder / file)).name == Path(file).stem
    methods = {name.partition("/")[0] for name in recipe.names()}
    named = [span for page in WRITTEN for span in spans(page) if span.partition("/")[0] in methods and "/" in span]
    for name in named:
        if not name.startswith("fastcondense/") or name in recipe.names():
            recipe.load(name)
    assert len(named) > 40


def templates() -> list[str]:
    """The code's strings, with … for what is put into them."""
    found = []
    for path in (path for part in ("fastcondense", "loaders") for path in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_message_of_troubleshooting_is_the_codes():
    rows = [row[0] for row in cells(ROOT / "docs" / "troubleshooting.md") if row[0].startswith("`")]
    known = templates()
    assert len(rows) > 50
    for row in rows:
        message = row.strip("`")
        pattern = re.compile(".*".join(re.escape(part) for part in message.split("…")), re.S)
        assert len(message.replace("…", "").strip()) > 12, f"{message} says too little"
        assert any(pattern.search(text) for text in known), f"no code says: {message}"
