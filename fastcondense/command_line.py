"""What tyro reads from a command line, with its words made ours: one line for what is wrong, and a short help."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import textwrap
import typing
from typing import Annotated, Any, TypeVar, Union

import tyro

Kind = TypeVar("Kind")
_FRAME = "│╭╮╰╯─ "
_PLACES = ("--recipe", "--data", "--out", "--images", "--teachers")


class Help(Exception):
    """The text of a help option, which is asked for in the place of a command."""


def parse(
    kind: type[Kind], program: str, description: str, arguments: list[str], default: Kind | None, common: list[str]
) -> Kind:
    """The arguments as a dataclass; what they do not say is as in `default`.

    common: options that --help shows, while --help-all shows all of them; if there are none, --help does.
    Raises ValueError for wrong arguments, with the nearest name for one that there is not; Help where asked for.
    """
    _check_places(arguments)
    is_short = bool(common) and "--help-all" not in arguments
    arguments = ["--help" if argument == "--help-all" else argument for argument in arguments]
    said, complaint = _stream(), _stream()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint):
            options, unknown = tyro.cli(
                kind,
                prog=program,
                description=description,
                args=arguments,
                default=tyro.MISSING_NONPROP if default is None else default,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code:
            raise ValueError(_first_paragraph(_text(complaint))) from None
        raise Help(_short(_text(said), program, common) if is_short else _text(said)) from None
    if unknown and not unknown[0].startswith("-"):
        before = [word for word in arguments[: arguments.index(unknown[0])] if word.startswith("--")]
        if not before:
            raise ValueError(f"nothing is expected there: {unknown[0]!r}")
        raise ValueError(f"{before[-1]} takes no value, or no more of them, got {unknown[0]!r}")
    if unknown:
        given = unknown[0].partition("=")[0].replace("_", "-")
        near = difflib.get_close_matches(given, flags(kind), 1, 0.0)[0]
        raise ValueError(f"unknown option {unknown[0]!r}; the nearest is {near!r}")
    return options


def _check_places(arguments: list[str]) -> None:
    """Raises ValueError for a recipe, folder or file whose name is empty, as a script's unset variable is."""
    for word, following in itertools.zip_longest(arguments, arguments[1:]):
        flag, is_one_word, value = word.partition("=")
        if flag in _PLACES and (value if is_one_word else following) == "":
            raise ValueError(f"{flag} is empty; is a variable of your script not set?")


def flags(kind: type, prefix: str = "--") -> list[str]:
    """Every option of a command, as tyro spells it; tyro itself takes as long to list them as to read them."""
    found = []
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        inner, *marks = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
        if tyro.conf.Suppress in marks or tyro.conf.Positional in marks:
            continue
        if dataclasses.is_dataclass(inner):
            is_flat = any(getattr(mark, "name", None) == "" for mark in marks)
            found += flags(typing.cast(type, inner), prefix if is_flat else f"{prefix}{name}.")
        else:
            words = [name, f"no_{name}"] if inner is bool else [name]
            found += [f"{prefix}{word}".replace("_", "-") for word in words]
    return found


def completion(program: str, commands: dict[str, tuple[type, str]], shell: str) -> str:
    """The script that completes a program's commands and options in bash, zsh, fish or tcsh.

    commands: dataclass and description of each.
    """
    kinds = [
        Annotated[kind, tyro.conf.subcommand(name, description=description)]
        for name, (kind, description) in commands.items()
    ]
    every: Any = Union[tuple(kinds)]  # noqa: UP007
    script = _stream()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        tyro.cli(every, prog=program, args=["--tyro-print-completion", shell])
    return _text(script)


def _stream() -> io.TextIOWrapper:
    """A stream to catch tyro's words, whose encoding has the frames that are looked for."""
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8")


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def _first_paragraph(box: str) -> str:
    """The text of a framed message, without its title and what follows the first rule in it."""
    paragraph: list[str] = []
    for line in box.splitlines()[1:]:
        if not (text := line.strip(_FRAME)) and paragraph:
            break
        paragraph.append(text)
    return " ".join(paragraph)


def _blocks(text: str) -> list[list[str]]:
    """The options of a help text, each as its own line and those of its description."""
    found: list[list[str]] = []
    for line in text.splitlines():
        inside = line.removeprefix("│ ").rstrip(_FRAME)
        if inside.startswith("-"):
            found.append([inside])
        elif inside.startswith("  ") and found:
            found[-1].append(inside.strip())
    return found


def _short(text: str, program: str, common: list[str]) -> str:
    """A help text with the options of `common` alone."""
    lines = [f"usage: {program} [RUN | --recipe NAME] [--FIELD VALUE ...]\n"]
    for option, *description in _blocks(text):
        if option.split()[0].rstrip(",") in common:
            is_whole = option.count("[") == option.count("]")  # else it goes on in the next line
            lines.append(f"  {option if is_whole else option.split()[0]}")
            lines += textwrap.wrap(" ".join(description), 110, initial_indent="      ", subsequent_indent="      ")
    return "\n".join([*lines, f"\n{program} --help-all shows every option.\n"])
