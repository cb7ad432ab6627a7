"""Pickles, read without running anything in them: tensors, numbers and arrays of numpy, plain containers.

torch's own restricted reader (weights_only) refuses numpy's numbers, which published files hold. numpy's constructors
are not made for hostile input (the state of a dtype may point anywhere), so stand-ins that make numbers alone answer to
their names, in files of torch.save and in all others.
"""

from __future__ import annotations

import argparse
import contextlib
import encodings.aliases
import math
import pickle
import pickletools
import re
import struct
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .loaders.reading import open_file

_ONE_AT_A_TIME = threading.Lock()  # torch keeps the list of allowed names in a global
_DEEPEST = 1000  # containers in containers; hashing tuples a hundred times deeper overflows the stack of C
_MOST = 10_000_000  # values, those that several containers share counted in each: who walks them meets each so often
_ROOM = 200_000_000  # bytes of tensors beyond twice the file


def load(path: Path) -> Any:
    """Reads what torch.save wrote to `path`, in either format, on the host; argparse.Namespace is let through too.

    Raises FileNotFoundError, and ValueError for a damaged file or one that asks for anything else, whose name it says.
    """
    try:
        _check(path)
        with _ONE_AT_A_TIME, torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors that nobody makes any more
            found = torch.load(path, map_location="cpu", weights_only=True)
        _check_size(found, 2 * path.stat().st_size + _ROOM)
        return found
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
        text = str(error)
        if found := re.search(r"\bGLOBAL (\S+)", text):
            raise ValueError(f"it asks for {found[1]}, and only tensors and numbers are read") from None
        if "Unsupported operand" in text and (names := list(dict.fromkeys(_asked_for(path)))):
            raise ValueError(f"it is no pickle as torch.save writes it, and asks for {', '.join(names)}") from None
        raise ValueError(text.splitlines()[0] if text else type(error).__name__) from None


def load_plain(path: Path) -> Any:
    """A pickle of plain containers, numbers and arrays of numbers, as CIFAR's; strings of Python 2 are latin-1.

    Raises OSError, and ValueError for a damaged file or one that asks for anything else, whose name it says.
    """
    with open_file(path) as file:
        try:
            _scan(file)
            file.seek(0)
            return _Plain(file, encoding="latin1").load()
        except Exception as error:  # as above
            text = str(error)
            raise ValueError(text.splitlines()[0] if text else type(error).__name__) from None


# --- what is looked at before ----------------------------------------------------------------------------------------


def _check(path: Path) -> None:
    """Raises ValueError for a file whose reading could take the process down, or more memory than the file is long."""
    with open_file(path) as file:
        is_zip = file.read(4) == b"PK\3\4"  # as torch decides
    if is_zip:
        _check_end(path)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, as torch.save writes no file")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("it claims more bytes than it has")
        _scan(BytesIO(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")))
        return
    with open_file(path) as file, contextlib.suppress(ValueError):  # what is no pickle is torch's to refuse
        for _ in range(5):  # an old file begins with so many
            _scan(file)


def _check_end(path: Path) -> None:
    """Raises ValueError for a zip file that ends otherwise than torch.save's: readers may find different entries."""
    with open_file(path) as file:
        end = file.seek(0, 2) - 22
        file.seek(max(0, end - 76))
        tail = file.read()
    if len(tail) >= 22 and tail[-22:-18] == b"PK\5\6" and tail[-2:] == b"\0\0":
        size, begin = struct.unpack("<LL", tail[-10:-2])
        if len(tail) == 98 and tail[56:60] == b"PK\6\7":  # of 64 bits: a longer record, and where it begins
            end -= 76
            size, begin = struct.unpack("<QQ", tail[40:56])
            if tail[:4] != b"PK\6\6" or struct.unpack("<Q", tail[64:72]) != (end,):
                size = -1
        if size >= 0 and begin + size == end:
            return
    raise ValueError("it is no zip file as torch.save writes it")


class _Scanned:
    """What a pickle makes: how deep it is, of how many values, whether it is in another, and the name of a function, or
    whether one has made it or something in it."""

    __slots__ = ("count", "depth", "is_inside", "is_made", "name")

    def __init__(self, name: str = ""):
        self.depth, self.count, self.name = 0, 1, name
        self.is_inside = self.is_made = False


def _scan(file: BinaryIO) -> None:
    """Scans a pickle, without making anything of it, for containers that are nested too deep, for more values than
    anybody could walk, for calls that take memory, and for numbers of its memo that would make that a table of
    gigabytes."""
    stack: list[_Scanned] = []
    marks: list[int] = []
    memo: dict[int, _Scanned] = {}
    one = _Scanned()
    transforms, has_encode = set[str](), False
    for position, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name, before = opcode.name, opcode.stack_before
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            number = len(memo) if argument is None else int(argument or 0)
            if number > position:
                raise _Refused(f"it numbers its objects from {number} on")
            memo[number] = stack[-1] if stack else one
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(int(argument or 0), one))
        elif name in ("DUP", "POP", "POP_MARK"):
            raise _Refused(f"it holds {name}, which no pickle of tensors and numbers needs")
        elif not before and not name.startswith("EMPTY"):
            asked = str(argument).partition(" ")[2] if name == "GLOBAL" else ""
            if asked in _BY_NUMBER:
                raise _Refused(f"it asks for {asked}, which may take any memory")
            has_encode |= asked == "encode"
            if isinstance(argument, str) and len(argument) < _LONGEST_CODEC and _codec(argument) in _TRANSFORMS:
                transforms.add(argument)
            if has_encode and transforms:
                raise _Refused(f"it asks for bytes encoded as {min(transforms)!r}")
            stack += [_Scanned(asked) if asked else one] * len(opcode.stack_after)
        else:
            count = len(before)
            if pickletools.markobject in before:
                count = before.index(pickletools.markobject) + len(stack) - (marks.pop() if marks else 0)
            taken = stack[max(0, len(stack) - count) :]
            del stack[max(0, len(stack) - count) :]
            # what is changed in place is itself, with what is put into it; all else is new, and one deeper
            is_changed = bool(taken) and name in _CHANGES
            made = taken[0] if is_changed and taken[0] is not one else _Scanned()
            if is_changed and made.is_inside:
                raise _Refused("it changes what is in a container already")
            if name == "REDUCE" and taken and taken[0].name in _WALKERS and any(inner.is_made for inner in taken[1:]):
                raise _Refused(f"it makes a {taken[0].name} of what is none of plain values")
            for inner in taken[is_changed:]:
                made.depth, made.count = max(made.depth, 1 + inner.depth), made.count + inner.count
                made.is_made |= inner.is_made
                inner.is_inside |= inner is not one
            made.is_made |= name in ("REDUCE", "NEWOBJ", "OBJ", "INST")
            if made.depth > _DEEPEST:
                raise _Refused(f"it nests containers more than {_DEEPEST} deep")
            if made.count > _MOST:
                raise _Refused(f"it has more than {_MOST:,} values, with those that are shared")
            stack += [made] * len(opcode.stack_after)


def _codec(name: str) -> str:
    """The name of a codec as Python looks it up."""
    name = encodings.normalize_encoding(name).lower()
    return encodings.aliases.aliases.get(name, name)


_CHANGES = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_BY_NUMBER = {"bytearray", "_rebuild_device_tensor_from_cpu_tensor", "_rebuild_device_tensor_from_numpy"}
"""Functions of torch's list that take the memory that a number names."""
_WALKERS = {"set", "frozenset", "Counter", "Size"}
"""Functions of torch's list that walk what they are given: a tensor may claim any length."""
_TRANSFORMS = {"base64_codec", "bz2_codec", "hex_codec", "quopri_codec", "rot_13", "uu_codec", "zlib_codec"}
"""Codecs from bytes to bytes, which can be applied again and again."""
_LONGEST_CODEC = 50


class _Refused(Exception):
    """Apart from what pickletools raises for what is no pickle."""


def _check_size(found: Any, limit: int) -> None:
    """Raises ValueError if all its tensors and arrays have more bytes: a few stored numbers may claim any shape."""
    todo, seen, size = [found], set(), 0
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor | np.ndarray):
            size += math.prod(value.shape) * value.itemsize
        elif isinstance(value, Mapping):
            todo += value.values()
        elif isinstance(value, list | tuple | set):
            todo += value
        elif isinstance(value, argparse.Namespace):
            todo += vars(value).values()
    if size > limit:
        raise ValueError(f"its tensors have {size:,} bytes, many more than the file")


def _asked_for(path: Path) -> Iterator[str]:
    """Names of the functions and classes in a pickle of any protocol, which is scanned and not executed."""
    strings = ["", ""]
    with contextlib.suppress(ValueError), open_file(path) as file:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name in ("GLOBAL", "INST"):
                yield str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL":
                yield ".".join(strings[-2:])
            elif isinstance(argument, str):
                strings.append(argument)


# --- stand-ins -------------------------------------------------------------------------------------------------------


class _Dtype:
    """Stands in for numpy.dtype: one of numbers, in either byte order."""

    def __init__(self, code: str, *_: Any):
        if not (isinstance(code, str) and re.fullmatch("[biuf][1248]", code)):
            raise ValueError(f"it asks for numpy.dtype({code!r:.40}), and only numbers are read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array(np.ndarray):
    """Stands in for numpy.ndarray: empty until its state is set."""

    def __new__(cls) -> _Array:
        return super().__new__(cls, (0,))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, kind, is_fortran, content = state
        dtype = _checked(kind)
        content = content.encode("latin1") if isinstance(content, str) else content  # Python 2's strings
        if not (
            isinstance(shape, tuple)
            and len(shape) <= 32
            and all(type(side) is int and side >= 0 for side in shape)
            and isinstance(content, bytes)
            and math.prod(shape) * dtype.itemsize == len(content)
        ):
            raise ValueError("the bytes of an array are not those of its shape")
        state = 1 if version is None else int(version), shape, dtype, bool(is_fortran), content
        super().__setstate__(state)  # type: ignore[arg-type]


def _scalar(kind: _Dtype, content: bytes) -> Any:
    return np.frombuffer(content, _checked(kind))[0]


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _no_bytes() -> bytes:
    return b""


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """Stands in for _codecs.encode, by which old pickles write bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"it asks for bytes encoded as {encoding!r:.40}")
    return text.encode("latin1")


def _checked(kind: Any) -> np.dtype:
    if type(kind) is not _Dtype:
        raise ValueError(f"it asks for an array of {type(kind).__name__}, and only numbers are read")
    return kind.dtype


class _Call:
    """A stand-in as a plain pickle gets it: it can be called, and nothing else can be done to it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("it changes functions")


def _uncalled(*_: Any) -> Any:
    raise ValueError("it asks for an array that is made of no bytes")


_STAND_INS: list[Any] = [argparse.Namespace]
_STAND_INS += [(_Dtype, "numpy.dtype"), (_Array, "numpy.ndarray"), (_no_bytes, "builtins.bytes")]
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before numpy 2, and since
    _STAND_INS += [(_scalar, f"{_module}.scalar"), (_reconstruct, f"{_module}._reconstruct")]
_IN_PLAIN: dict[str, Callable[..., Any]] = {name: function for function, name in _STAND_INS[1:]}
_IN_PLAIN["numpy.ndarray"] = _uncalled
_IN_PLAIN["_codecs.encode"] = _encoded
_IN_PLAIN["__builtin__.bytes"] = _no_bytes


class _Plain(pickle.Unpickler):
    """Gives stand-ins for the few names that arrays of numbers need, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        asked = f"{module}.{name}"
        if asked not in _IN_PLAIN:
            raise ValueError(f"it asks for {asked}, which arrays of numbers do not need: refused")
        return _Call(_IN_PLAIN[asked])
