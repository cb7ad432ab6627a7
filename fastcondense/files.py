"""Files of a run: written whole or not at all, read without running code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .leftovers import hold, sweep, temporary_beside
from .loaders.reading import read_file, writing
from .records import parse_json


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path` that is flushed to disk and renamed at the end: a reader sees all or nothing.

    Raises OSError (disk full, no permission) and leaves nothing behind, as after any error in the block. What is left
    when the process is killed, `leftovers.sweep` knows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with writing(path), temporary.open("wb") as file:
            hold(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_filled(path: Path) -> bool:
    """Whether there is something at `path` other than an empty folder."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` to write into, which becomes `path` at the end; killed ones are removed first.

    Raises ValueError if `path` is there and is not an empty folder. After an error in the block nothing is left.
    """
    if is_filled(path):
        what = "empty" if path.is_dir() else "a folder"
        raise ValueError(f"{path} is not {what}; choose another --out")
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, path.name)
    temporary = temporary_beside(path)
    temporary.mkdir()
    held = os.open(temporary, os.O_RDONLY)
    try:
        hold(held)
        with writing(path):
            yield temporary
        try:
            temporary.replace(path)
        except OSError:
            if is_filled(path):  # by another process meanwhile
                raise ValueError(f"{path} is not empty; choose another --out") from None
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(held)


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file as `new_file` does."""
    with new_file(path) as file:
        file.write(data)


def slug(name: str) -> str:
    """The name as part of a path: what is neither a letter, a digit, nor one of -_. becomes a dash, as do . and .. ."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    return plain if plain.strip(".") else "-" * len(plain)


def check_room(folder: Path, size: int, held: int = 0) -> None:
    """Raises ValueError if `size` bytes, of which `held` lie there already, do not fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free + held
    if size > free:
        raise ValueError(f"{size:,} bytes do not fit in {folder}, where {free:,} are free")


def write_json(path: Path, tree: Any) -> None:
    """A JSON file, indented, atomically."""
    write_atomic(path, (json.dumps(tree, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError that names a file which is missing or not JSON."""
    return parse_json(read_file(path), path)


def tree_sha256(tree: Any) -> str:
    """Hash of a JSON-like tree, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a user's text file in UTF-8, with or without a byte order mark, that are not empty, without spaces
    around them. Raises ValueError that names it and `what`, the setting.
    """
    try:
        lines = [line.strip() for line in read_file(path).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{what}: {path} is no UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    if not any(lines):
        raise ValueError(f"{what}: {path} is empty")
    return [line for line in lines if line]


def first_difference(old: Any, new: Any, where: str = "") -> str:
    """The first place where two JSON trees differ, in words; empty if they are equal."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*new, *(key for key in old if key not in new)]:
            found = first_difference(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
            if found:
                return found
        return ""
    return "" if old == new else f"{where} was {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
