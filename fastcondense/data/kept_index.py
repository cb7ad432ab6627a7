"""The index of a large image folder, kept in the user's cache: the folder is walked once, and not by every command.

What is in a folder cannot change without its time of change (ctime), which nobody can set: an index holds as long as
those of all folders that were walked stand still. Files themselves may change; nothing of them is in an index.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import torch

from ..loaders.class_folders import EXTENSIONS, ClassFolders, index_classes, is_read
from ..loaders.file_names import FileNames
from ..records import checked, parse_json
from ..tensor_files import read_tensors, write_tensors

_WORTH = 100_000
"""Files of a folder that is large."""
_SETTLED = 60.0
"""Seconds since a folder's last change; in one that changes now, another change may bear the same time."""
_MOST_KEPT = 8
"""Indices of other folders, such as copies on the disk of a machine that is gone, do not pile up."""


def indexed(root: Path) -> ClassFolders:
    """The images of `index_classes`, which is asked unless the answer is kept. Raises ValueError as it does."""
    path = _path(root)
    if path.is_file():
        # whatever is wrong with it, the folder is walked again
        with contextlib.suppress(ValueError, OSError, KeyError):
            if (kept := _read(path, root)) is not None:
                return kept
    begun = time.time_ns()
    found = index_classes(root)
    if len(found.files) >= _WORTH and max(found.times.values()) < begun - _SETTLED * 1e9:
        with contextlib.suppress(OSError):  # no home, a full disk
            _write(path, found)
    return found


def _path(root: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", "") or os.path.expanduser("~/.cache"))
    named = f"{os.path.abspath(root)}\n{root}"  # messages call the folder as the user does
    return cache / "fastcondense" / f"index-{hashlib.sha256(os.fsencode(named)).hexdigest()[:16]}.safetensors"


def _readable() -> str:
    """What is taken for an image: the endings that are read here."""
    return " ".join(sorted(filter(is_read, EXTENSIONS)))


def _write(path: Path, found: ClassFolders) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\0".join(found.files.names).encode(errors="surrogateescape")
    arrays = {
        "names": torch.frombuffer(bytearray(text), dtype=torch.uint8),
        "counts": torch.from_numpy(np.bincount(found.labels)),
        "times": torch.tensor(list(found.times.values()), dtype=torch.int64),
    }
    about = {"classes": found.classes, "said": found.said, "folders": list(found.times)}
    write_tensors(path, arrays, {name: json.dumps(value) for name, value in about.items()} | {"endings": _readable()})
    kept = sorted(path.parent.glob("index-*.safetensors"), key=lambda other: other.stat().st_mtime)
    for old in kept[:-_MOST_KEPT]:
        old.unlink(missing_ok=True)


def _read(path: Path, root: Path) -> ClassFolders | None:
    """The index in a file, if nothing has changed since. Raises ValueError, OSError or KeyError for a damaged file, and
    for folders that are gone."""
    arrays, metadata = read_tensors(path)
    about = {name: tuple(checked(parse_json(metadata[name], path), list[str], path)) for name in ("classes", "said")}
    folders = checked(parse_json(metadata["folders"], path), list[str], path)
    times = dict(zip(folders, arrays["times"].tolist(), strict=True))
    if metadata["endings"] != _readable() or any(os.stat(root / name).st_ctime_ns != times[name] for name in folders):
        return None
    names = arrays["names"].numpy().tobytes().decode(errors="surrogateescape").split("\0")
    counts = arrays["counts"].numpy()
    labels = np.repeat(np.arange(len(counts)), counts)
    if len(labels) != len(names) or len(counts) != len(about["classes"]):
        return None
    return ClassFolders(root, FileNames(root, names), labels, **about, times=times)
