"""The lock of a run's folder: the workers of one launch share it, another launch waits a moment and is then refused.

It is a lock of the system, which ends with the process that holds it, however that ends; over NFS it holds between
machines too. No clock is compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..leftovers import clean

_SECONDS_TO_WAIT = 20.0  # for a launch that is just ending
_NAME = ".lock"


@contextlib.contextmanager
def locked(folder: Path, seconds: float = _SECONDS_TO_WAIT) -> Iterator[None]:
    """Holds the folder of a run, which is made if need be. Raises ValueError if another launch holds it.

    The first of a launch removes what killed ones have left behind. Where the file system has no locks, the block
    runs without.
    """
    folder.mkdir(parents=True, exist_ok=True)
    me, until = _launch(), time.monotonic() + seconds
    with (folder / _NAME).open("a+") as file:
        while not (is_first := _try(file, fcntl.LOCK_EX)):
            holder = _read(file)
            if holder.get("launch") == me["launch"] and _try(file, fcntl.LOCK_SH):
                break
            if time.monotonic() > until:
                raise ValueError(
                    f"another launch works on {folder}: process {holder.get('process', '?')} on "
                    f"{holder.get('host', '?')}; wait for it or end it, or choose another --out"
                )
            time.sleep(0.1)
        if is_first:
            clean(folder)
            file.truncate(0)
            file.write(json.dumps(me))
            file.flush()
            _try(file, fcntl.LOCK_SH)
        yield


def _launch() -> dict[str, Any]:
    """What this process belongs to."""
    environment, process = os.environ, os.getpid()
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    shared = [environment[name] for name in names if name in environment]
    host = socket.gethostname()
    return {"launch": " ".join(shared) or f"{host} {process} {time.time_ns()}", "host": host, "process": process}


def _try(file: Any, kind: int) -> bool:
    """Whether the lock could be had without waiting, or cannot be had here at all."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _read(file: Any) -> dict[str, Any]:
    """What the holder has written; nothing while it writes."""
    file.seek(0)
    with contextlib.suppress(ValueError):
        return json.loads(file.read())
    return {}
