"""Published scripts as modules: imported from their folder without a trace, and without a GPU where there is none."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch


class Overlay(types.ModuleType):
    """A module with some names changed: given to a script in the place of what it has imported."""

    def __init__(self, below: Any, **changes: Any):
        super().__init__(getattr(below, "__name__", "overlay"))
        self.__dict__.update(vars(below))
        self.__dict__.update(changes)
        self._below = below

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_below"], name)


def silent(*_: Any, **__: Any) -> None:
    """Takes anything, says and does nothing."""


def stand_in(name: str) -> types.ModuleType:
    """A module for a package that a script imports but that its step never calls: any name is None."""
    module = types.ModuleType(name)
    module.__getattr__ = lambda _: None
    return module


@contextlib.contextmanager
def isolated(folder: Path, scratch: Path, argv: Sequence[str] = (), absent: Sequence[str] = ()) -> Iterator[None]:
    """Inside it, scripts in `folder` can be imported under their own names; afterwards there is no sign of them.

    sys.path, sys.modules, sys.argv, the working folder (scratch meanwhile), warning filters and torch's way of sharing
    memory are as they were, also after an error. argv: the arguments that a script may parse while it is imported.
    absent: packages that get a stand-in where they are not installed. No bytecode is written.
    """
    before = list(sys.path), dict(sys.modules), list(sys.argv), os.getcwd(), sys.dont_write_bytecode
    strategy = torch.multiprocessing.get_sharing_strategy()
    own = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    try:
        for name in [name for name in sys.modules if name.split(".")[0] in own]:
            del sys.modules[name]
        for name in absent:
            if importlib.util.find_spec(name) is None:
                sys.modules[name] = stand_in(name)
        sys.path.insert(0, str(folder))
        sys.argv, sys.dont_write_bytecode = ["", *argv], True
        os.chdir(scratch)
        importlib.invalidate_caches()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] in own or name in absent or _is_below(module, folder):
                del sys.modules[name]
        sys.modules.update({name: module for name, module in before[1].items() if name not in sys.modules})
        sys.path[:] = before[0]
        sys.argv, sys.dont_write_bytecode = before[2], before[4]
        os.chdir(before[3])
        torch.multiprocessing.set_sharing_strategy(strategy)


def _is_below(module: types.ModuleType, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return bool(file) and Path(file).resolve().is_relative_to(folder.resolve())


_MAKERS = ("arange", "empty", "full", "linspace", "ones", "rand", "randint", "randn", "randperm", "tensor", "zeros")


@contextlib.contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Inside it, "cuda" means `device`; on a GPU nothing is changed.

    torch's makers of tensors, Tensor.cuda, Tensor.to and torch.cuda.set_device are replaced, each by one more call.
    """
    if device.type == "cuda":
        yield
        return

    def translated(wanted: Any) -> Any:
        is_gpu = (isinstance(wanted, str) and wanted.startswith("cuda")) or getattr(wanted, "type", None) == "cuda"
        return device if is_gpu else wanted

    def redirected(make: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if "device" in options:
                options["device"] = translated(options["device"])
            return make(*args, **options)

        return call

    to = torch.Tensor.to

    def moved(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if "device" in options:
            options["device"] = translated(options["device"])
        return to(tensor, *(translated(value) for value in args), **options)

    with contextlib.ExitStack() as stack:
        for name in _MAKERS:
            stack.enter_context(mock.patch.object(torch, name, redirected(getattr(torch, name))))
        stack.enter_context(mock.patch.object(torch.Tensor, "to", moved))
        stack.enter_context(mock.patch.object(torch.Tensor, "cuda", lambda tensor, *_, **__: to(tensor, device)))
        stack.enter_context(mock.patch.object(torch.cuda, "set_device", lambda _: None))
        yield
