"""Files of others: what they are is asked before they are opened, and whatever their bytes provoke names them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_VALUE, _ROOM = 100, 150_000_000
"""Bytes in memory of a value of a JSON tree, about, and of a tree beyond twice its text."""
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


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that writes `path`, or below it: an OSError of a disk that is full or fails names it, whatever part or
    temporary of it was being written.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_A_DISK:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None


def check_values(size: int, values: int) -> None:
    """Raises ValueError for JSON texts of `size` bytes whose `values` would take many times that in memory."""
    if _VALUE * values > 2 * size + _ROOM:
        raise ValueError(f"it holds {values:,} values in {size:,} bytes")


def count_values(text: bytes) -> int:
    """Values in a JSON text, or a few more."""
    return sum(map(text.count, (b",", b"[", b"{")))


def check_file(path: Path) -> None:
    """Raises ValueError that names what is missing, or no regular file nor a link to one."""
    with _naming_what_is_there(path):
        _check_kind(path, os.stat(path))


def open_file(path: Path) -> BinaryIO:
    """The file, open to be read. Raises ValueError as `check_file`, also for what was put in its place meanwhile."""
    check_file(path)
    with _naming_what_is_there(path):
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        _check_kind(path, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def read_file(path: Path) -> bytes:
    """The bytes of the file. Raises ValueError as `open_file`."""
    with open_file(path) as file, naming(path):
        return file.read()


def check_folder(folder: Path) -> None:
    """Raises ValueError for what in the folder of a run, or below, is neither a file nor a folder, and for a link that
    leads out of it: somebody else's folder could have this one's user read or write anything. It may be a link itself.
    """
    root, todo = os.path.realpath(folder), [str(folder)] if folder.is_dir() else []
    while todo:
        with contextlib.suppress(FileNotFoundError), os.scandir(todo.pop()) as entries:  # others may be at work there
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                elif entry.is_symlink():
                    if os.path.commonpath([root, os.path.realpath(entry.path)]) != root:
                        raise ValueError(f"{entry.path} is a link out of {folder}; put there what it leads to")
                elif not entry.is_file(follow_symlinks=False):
                    _check_kind(Path(entry.path), entry.stat(follow_symlinks=False))


@contextlib.contextmanager
def _naming_what_is_there(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path} cannot be read: there is no such file") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # a name with a NUL
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} cannot be read: {error}") from None


def _check_kind(path: Path, facts: os.stat_result) -> None:
    kind = stat.S_IFMT(facts.st_mode)
    if kind != stat.S_IFREG:
        raise ValueError(f"{path} is {_KINDS.get(kind, 'no file')}, not a file")
