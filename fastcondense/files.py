"""Files of a run: written whole or not at all, read without running code."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from . import restricted_pickle
from .leftovers import hold, sweep, temporary_beside
from .loaders.reading import check_file, reading
from .records import checked, parse_json

DIGESTS = "tensors_sha256"
"""Key of a safetensors file's metadata: sha256 by tensor, as JSON."""


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path` that is flushed to disk and renamed at the end: a reader sees all or nothing.

    Raises OSError (disk full, no permission) and leaves nothing behind, as after any error in the block. What is left
    when the process is killed, `leftovers.sweep` knows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as file:
            hold(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` to write into, which becomes `path` at the end; killed ones are removed first.

    Raises ValueError if `path` is there and is not an empty folder. After an error in the block nothing is left.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is not empty; choose another --out")
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, path.name)
    temporary = temporary_beside(path)
    temporary.mkdir()
    held = os.open(temporary, os.O_RDONLY)
    try:
        hold(held)
        yield temporary
        temporary.replace(path)
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


def check_room(folder: Path, size: int) -> None:
    """Raises ValueError if `size` bytes do not fit on the disk of `folder`, beside what is not in it already."""
    held = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free + held
    if size > free:
        raise ValueError(f"{size:,} bytes do not fit in {folder}, where {free:,} are free")


def write_json(path: Path, tree: Any) -> None:
    """A JSON file, indented, atomically."""
    write_atomic(path, (json.dumps(tree, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError that names a file which is missing or not JSON."""
    with reading(path, "{path} is damaged: {error}"):
        return parse_json(path.read_bytes(), path)


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a user's text file in UTF-8, with or without a byte order mark, that are not empty, without spaces
    around them. Raises ValueError that names it and `what`, the setting.
    """
    check_file(path)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{what}: {path} is no UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{what}: {path} cannot be read: {error.strerror}") from None
    if not any(lines):
        raise ValueError(f"{what}: {path} is empty")
    return [line for line in lines if line]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, atomically. Its metadata hold the sha256 of every tensor, which `read_tensors` checks."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digests = json.dumps({name: _sha256(tensor) for name, tensor in sorted(plain.items())})
    write_atomic(path, safetensors_bytes(plain, {**metadata, DIGESTS: digests}))


def read_tensors(path: Path, *prefixes: str, is_known: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; with prefixes, only the tensors whose names begin with one of them.

    Raises ValueError that names a file which is missing or damaged, and a tensor that is not the one that was written;
    is_known: that is not looked at again. Files of others have no digests.
    """
    with reading(path), safe_open(str(path), "pt") as file:
        metadata = dict(file.metadata() or {})
        digests = checked(parse_json(metadata.pop(DIGESTS, "{}"), path), dict[str, str], path)
        names = [name for name in file.keys() if not prefixes or name.startswith(prefixes)]
        tensors = {name: file.get_tensor(name) for name in names}
        for name in digests.keys() ^ file.keys() if digests else ():
            raise ValueError(f"{path} is damaged: {name!r} is not among its tensors or digests")
        for name, tensor in tensors.items() if digests and not is_known else ():
            if _sha256(tensor) != digests[name]:
                raise ValueError(f"{path} is damaged: its {name!r} are not those that were written")
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata alone of a safetensors file. Raises ValueError that names a file which is missing or damaged."""
    with reading(path), safe_open(str(path), "pt") as file:
        return {key: value for key, value in (file.metadata() or {}).items() if key != DIGESTS}


def _sha256(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_checkpoint(path: Path) -> Any:
    """A torch checkpoint, read without running any code in it (weights_only); safetensors files too.

    Numbers of numpy and argparse.Namespace of plain values, which published ones hold beside weights, are let through.
    Raises ValueError that names a file which is missing, damaged or asks for code.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    with reading(path, "checkpoint {path} cannot be read as weights: {error}"):
        return restricted_pickle.load(path)


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of a state dict's names, shapes, dtypes and bytes, independent of the file that held it."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
