"""Every kind of file that a killed process of ours may leave behind, and its removal.

Temporary files and folders belong to whoever holds a lock of the system on them, which ends with its process. Files
of work that goes on are needed no more once there is what they lead to.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from .loaders.reading import open_file

_CLAIMS = re.compile(r"\..*\.claims", re.DOTALL)
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[\w.-]+-\d+-\d+\.tmp", re.ASCII | re.DOTALL)


def temporary_beside(path: Path) -> Path:
    """The temporary path, beside `path`, at which this thread writes what becomes `path`."""
    writer = f"{socket.gethostname()}-{os.getpid()}-{threading.get_native_id()}"
    return path.with_name(f".{path.name}.{writer}.tmp")


def hold(file: int) -> None:
    """Marks the open temporary file or folder as that of a living process, as long as it is open."""
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sweep(folder: Path, name: str = "") -> None:
    """Removes temporaries in `folder` whose process has ended: those of `name`, or without it all, at any depth.

    What cannot be removed stays, and blocks nothing.
    """
    for path in list(_walk(folder) if not name else _listed(folder)):
        found = _TEMPORARY.fullmatch(path.name)
        if found and name in ("", found["name"]) and not _is_held(path):
            _remove(path)


def clean(run: Path) -> None:
    """Removes all that is left over in the folder of a run, on which nobody else may be at work."""
    sweep(run)
    for path in reversed(list(_walk(run))):  # what is in a folder before the folder
        if _is_finished(path):
            _remove(path)


def _is_finished(path: Path) -> bool:
    """Whether the file is the state of work that has ended: what the work led to is there by now."""
    folder, name = path.parent, path.name
    if found := re.fullmatch(r"unfinished-(\d+)\.safetensors", name):
        return (folder / f"shard-{found[1]}.safetensors").exists()
    if re.fullmatch(r"(checkpoint|probe)-[0-9a-f]{8}\.pt", name):
        return (folder / "weights.safetensors").exists()
    if name == "checkpoint.pt":
        return (folder / "student.json").exists()
    if found := re.fullmatch(r"parts((-[0-9a-f]{8})+)", name):
        numbers = found[1].split("-")[1:]
        return all(any(folder.glob(f"*/targets-{number}.safetensors")) for number in numbers)
    if _CLAIMS.fullmatch(folder.name):  # of this machine's processes, which have all ended, or none at all
        return _first_line(path) == socket.gethostname() or not path.is_file()
    if _CLAIMS.fullmatch(name):
        return path.is_dir() and not any(_listed(path))
    return False


def _first_line(path: Path) -> str:
    with contextlib.suppress(ValueError), open_file(path) as file:
        return file.readline(1000).decode().rstrip("\n")
    return ""


def _listed(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from folder.iterdir()


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below the folder; links are not followed."""
    for where, folders, files in os.walk(folder):
        yield from (Path(where, name) for name in (*folders, *files))


def _is_held(path: Path) -> bool:
    """Whether a living process still writes the temporary at `path`."""
    try:
        file = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks here: a file's writer would hold the run, a folder's need not
        return path.is_dir()
    finally:
        os.close(file)
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()
