"""Files of tensors: safetensors, whose tensors carry digests, and checkpoints of others."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from . import restricted_pickle
from .files import new_file, write_atomic
from .loaders.reading import open_file, reading
from .records import checked, parse_json

DIGESTS = "tensors_sha256"
"""Key of a safetensors file's metadata: sha256 by tensor, as JSON."""
Form = tuple[torch.dtype, Sequence[int]]
"""Type and shape of a tensor; -1 is a length that is free."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, atomically. Its metadata hold the sha256 of every tensor, which `read_tensors` checks."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digests = json.dumps({name: _sha256(tensor) for name, tensor in sorted(plain.items())})
    write_atomic(path, _in_order(safetensors_bytes(plain, {**metadata, DIGESTS: digests})))


def _in_order(data: bytes) -> bytes:
    """A safetensors file with its metadata by name: the library writes them in another order each time, and what is
    made twice must have the same bytes.
    """
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(data)[begin:]))


def read_tensors(path: Path, *prefixes: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; with prefixes, only the tensors whose names begin with one of them.

    Raises ValueError that names a file which is missing or damaged, and a tensor that is not the one that was written.
    Files of others have no digests.
    """
    with reading(path), safe_open(str(path), "pt") as file:
        metadata = dict(file.metadata() or {})
        digests = checked(parse_json(metadata.pop(DIGESTS, "{}"), path), dict[str, str], path)
        names = [name for name in file.keys() if not prefixes or name.startswith(prefixes)]
        tensors = {name: file.get_tensor(name) for name in names}
        for name in digests.keys() ^ file.keys() if digests else ():
            raise ValueError(f"{path} is damaged: {name!r} is not among its tensors or digests")
        for name, tensor in tensors.items() if digests else ():
            if _sha256(tensor) != digests[name]:
                raise ValueError(f"{path} is damaged: its {name!r} are not those that were written")
    return tensors, metadata


def first_byte(path: Path, name: str) -> int:
    """The byte of a safetensors file at which the values of a tensor begin. Raises ValueError as `read_metadata`."""
    with reading(path), open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        return 8 + length + int(json.loads(file.read(length))[name]["data_offsets"][0])


def read_kept(path: Path, forms: Mapping[str, Form]) -> dict[str, Tensor]:
    """The tensors of a file that a run keeps for itself, which have these forms, by name.

    Raises ValueError as `read_tensors`, and for a tensor that is missing, of another form or too many, or not finite:
    the folder of a run may be somebody else's.
    """
    tensors, _ = read_tensors(path)
    for name in sorted(forms.keys() | tensors.keys()):
        wanted, found = forms.get(name), tensors.get(name)
        if wanted is None or found is None or not _has_form(found, wanted):
            is_now = "there is none" if found is None else f"is {_in_words((found.dtype, found.shape))}"
            should = "none is kept" if wanted is None else _in_words(wanted)
        elif found.is_floating_point() and not bool(found.isfinite().all()):
            is_now, should = "has values that are not finite", "numbers"
        else:
            continue
        raise ValueError(f"{path} is not what a run keeps there; remove it: its {name!r} {is_now}, wanted: {should}")
    return tensors


def _has_form(tensor: Tensor, form: Form) -> bool:
    kind, shape = form
    lengths = zip(tensor.shape, shape, strict=False)
    return tensor.dtype == kind and tensor.dim() == len(shape) and all(wanted in (-1, n) for n, wanted in lengths)


def _in_words(form: Form) -> str:
    return f"{str(form[0]).removeprefix('torch.')} {[n if n >= 0 else 'any' for n in form[1]]}".replace("'", "")


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata alone of a safetensors file. Raises ValueError that names a file which is missing or damaged."""
    with reading(path), safe_open(str(path), "pt") as file:
        return {key: value for key, value in (file.metadata() or {}).items() if key != DIGESTS}


def read_digests(path: Path) -> dict[str, str]:
    """The sha256 of its tensors that a file of `write_tensors` has in its metadata; no tensor is read.

    Raises ValueError as `read_metadata` and `digests_of`.
    """
    with reading(path), safe_open(str(path), "pt") as file:
        return digests_of(file.metadata(), path)


def digests_of(metadata: Mapping[str, str] | None, path: Path) -> dict[str, str]:
    """The same, of metadata that are read already. Raises ValueError for those of another program's file."""
    text = (metadata or {}).get(DIGESTS)
    if text is None:
        raise ValueError(f"{path} has no digests of its tensors: another version wrote it, or it is damaged")
    return checked(parse_json(text, path), dict[str, str], path)


def _sha256(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_checkpoint(path: Path, tree: Any, extra: Mapping[str, bytes] | None = None) -> None:
    """A file of torch.save, atomically. extra: members of its zip archive that torch.load does not look at."""
    with new_file(path) as file:
        try:
            if extra:
                made = io.BytesIO()
                torch.save(tree, made)
                with zipfile.ZipFile(made, "a") as archive:
                    for name, data in extra.items():
                        archive.writestr(name, data)
                file.write(made.getbuffer())
            else:
                torch.save(tree, file)
        except RuntimeError as error:  # it closes its archive, which is too short, before it says why
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def read_checkpoint(path: Path, problem: str = "checkpoint {path} cannot be read as weights: {error}") -> Any:
    """A torch checkpoint, read without running any code in it (weights_only); safetensors files too.

    Numbers of numpy and argparse.Namespace of plain values, which published ones hold beside weights, are let through.
    Raises ValueError that names a file which is missing, damaged or asks for code, as `problem` says it.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    with reading(path, problem):
        return restricted_pickle.load(path)


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of a state dict's names, shapes, dtypes and bytes, independent of the file that held it."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
