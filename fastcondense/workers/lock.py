"""The lock of a run's folder: launches that do the same share it, any other waits a moment and is then refused.

It is a lock of the system, which ends with the process that holds it, however that ends; over NFS it holds between
machines too. No clock is compared.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ..leftovers import clean
from ..loaders.reading import writing
from .launched import launch_name

_SECONDS_TO_WAIT = 20.0  # for a launch that is just ending
_NAME = ".lock"


@contextlib.contextmanager
def locked(folder: Path, share: str = "", seconds: float = _SECONDS_TO_WAIT) -> Iterator[bool]:
    """Holds the folder of a run, which is made if need be; yields whether another launch was there first.

    share: what launches have in common that may work side by side; those without are alone. The first removes what
    killed processes have left behind. Where the file system has no locks, the block runs without. Raises ValueError if
    a launch that does something else holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    me = {"launch": launch_name(), "share": share, "host": socket.gethostname(), "process": os.getpid()}
    until = time.monotonic() + seconds
    with _open(folder / _NAME, os.O_RDWR | os.O_CREAT) as file:
        while True:
            if (is_mine := _try(file, fcntl.LOCK_EX)) is None:
                holder = me
                break
            if is_mine:
                clean(folder)
                with writing(folder / _NAME):
                    os.ftruncate(file.fileno(), 0)
                    os.pwrite(file.fileno(), json.dumps(me).encode(), 0)
            holder = _read(file)
            if holder.get("launch") == me["launch"] or (share and holder.get("share") == share):
                # the system lets go of one lock before it gives the other: who came between has written its name
                if _try(file, fcntl.LOCK_SH) and _read(file) == holder:
                    break
                _try(file, fcntl.LOCK_UN)
            if time.monotonic() > until:
                raise ValueError(
                    f"another launch works on {folder}: process {holder.get('process', '?')} on "
                    f"{holder.get('host', '?')}; wait for it or end it, or choose another --out"
                )
            time.sleep(0.1)
        yield holder.get("launch") != me["launch"]


def is_held(folder: Path) -> bool:
    """Whether a process holds the folder of a run."""
    with contextlib.suppress(OSError, ValueError), _open(folder / _NAME, os.O_RDWR) as file:
        return _try(file, fcntl.LOCK_EX) is False
    return False


def _open(path: Path, flags: int) -> TextIO:
    """Raises ValueError for a link, a pipe or a device: the lock is written, and must not be something else's file."""
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
    else:
        if stat.S_ISREG(os.fstat(file).st_mode):
            return os.fdopen(file, "r+")
        os.close(file)
    raise ValueError(f"{path} is no plain file; remove it")


def _try(file: TextIO, kind: int) -> bool | None:
    """Whether the lock could be had without waiting; None if there are no locks here at all."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _read(file: TextIO) -> dict[str, Any]:
    """The holder's note about itself; empty while it is being written."""
    file.seek(0)
    with contextlib.suppress(ValueError):
        found = json.loads(file.read())
        return found if isinstance(found, dict) else {}
    return {}
