"""Files of torch.save, read without running anything in them: tensors, numbers and arrays of numpy, plain containers.

torch's own restricted reader (weights_only) refuses numpy's numbers, which published files hold. numpy's constructors
are not made for hostile input (the state of a dtype may point anywhere), so stand-ins that make numbers alone answer to
their names.
"""

from __future__ import annotations

import argparse
import contextlib
import pickletools
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

_ONE_AT_A_TIME = threading.Lock()  # torch keeps the list of allowed names in a global


def load(path: Path) -> Any:
    """What torch.save wrote to `path`, in either of its formats, on the host; argparse.Namespace is let through too.

    Raises FileNotFoundError, and ValueError for a damaged file or one that asks for anything else, whose name it says.
    """
    try:
        with _ONE_AT_A_TIME, torch.serialization.safe_globals(_STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
        text = str(error)
        if found := re.search(r"\bGLOBAL (\S+)", text):
            raise ValueError(f"it asks for {found[1]}, and only tensors and numbers are read") from None
        if "Unsupported operand" in text and (names := list(dict.fromkeys(_asked_for(path)))):
            raise ValueError(f"it is no pickle as torch.save writes it, and asks for {', '.join(names)}") from None
        raise ValueError(text.splitlines()[0] if text else type(error).__name__) from None


def _asked_for(path: Path) -> Iterator[str]:
    """Names of the functions and classes in a pickle of any protocol, which is scanned and not executed."""
    content, strings = path.read_bytes(), ["", ""]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            content = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
    with contextlib.suppress(ValueError):
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name in ("GLOBAL", "INST"):
                yield str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL":
                yield ".".join(strings[-2:])
            elif isinstance(argument, str):
                strings.append(argument)


class _Dtype:
    """Stands in for numpy.dtype: one of numbers, in either byte order."""

    def __init__(self, code: str, *_: Any):
        if not (isinstance(code, str) and re.fullmatch("[biuf][1248]", code)):
            raise ValueError(f"it asks for numpy.dtype({code!r}), and only numbers are read")
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
        super().__setstate__((version, shape, _checked(kind), is_fortran, content))


def _scalar(kind: _Dtype, content: bytes) -> Any:
    return np.frombuffer(content, _checked(kind))[0]


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _no_bytes() -> bytes:
    return b""


def _checked(kind: Any) -> np.dtype:
    if type(kind) is not _Dtype:
        raise ValueError(f"it asks for an array of {type(kind).__name__}, and only numbers are read")
    return kind.dtype


_STAND_INS: list[Any] = [argparse.Namespace]
_STAND_INS += [(_Dtype, "numpy.dtype"), (_Array, "numpy.ndarray"), (_no_bytes, "builtins.bytes")]
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before numpy 2, and since
    _STAND_INS += [(_scalar, f"{_module}.scalar"), (_reconstruct, f"{_module}._reconstruct")]
