"""Files of others: what they are is asked before they are opened, and whatever their bytes provoke names them."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextlib.contextmanager
def reading(path: Path, problem: str = "{path} cannot be read: {error}") -> Iterator[None]:
    """A block that reads the file `path`, with failures as in `naming`.

    Raises ValueError before the block for what is no regular file, which could wait for ever or never end, and for one
    that is not there.
    """
    check_file(path)
    with naming(path, problem):
        yield


@contextlib.contextmanager
def naming(path: object, problem: str = "{path} cannot be read: {error}") -> Iterator[None]:
    """A block about what `path` holds: any failure in it is a ValueError of one line, `problem`, that names the file.

    A ValueError that names it already passes as it is.
    """
    try:
        yield
    except Exception as error:  # damaged bytes raise whatever they happen to ask for: a list of kinds is never whole
        text = " ".join(str(error).split())
        if isinstance(error, ValueError) and str(path) in str(error) and "\n" not in str(error):
            raise
        said = f"{text or type(error).__name__:.300}"
        raise ValueError(problem.replace("{path}", str(path)).replace("{error}", said)) from error


def check_file(path: Path) -> None:
    """Raises ValueError that names what is missing, or no regular file nor a link to one."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError:
        raise ValueError(f"{path} cannot be read: there is no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise ValueError(f"{path} cannot be read: {error}") from None
    if kind != stat.S_IFREG:
        raise ValueError(f"{path} is {_KINDS.get(kind, 'no file')}, not a file")
