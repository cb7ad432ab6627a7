"""Which loader reads the real images of a split: the one that the recipe names, or the best that is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ..loaders.folder import FolderLoader
from ..loaders.packed import PackedLoader
from ..loaders.source import Faults, Loader
from ..loaders.turbo import decoder
from ..recipe.settings import Dataset
from ..workers.launched import whole_number
from .datasets import Split

_INSTALL = {
    "ffcv": "apt-get install -y --no-install-recommends libopencv-dev libturbojpeg0-dev pkg-config && "
    "pip install 'ffcv>=1.0.2'",
    "dali": "pip install 'fastcondense[dali]', or [dali-cuda12] beside CUDA 12",
}
_MODULES = {"ffcv": "ffcv", "dali": "nvidia.dali"}
_DISTRIBUTIONS = {"ffcv": "ffcv", "dali": "nvidia-dali-cuda130"}
_PACKED = ("ffcv", "packed")


@dataclass(frozen=True)
class Source:
    """An open loader of a split, kept as long as the split is, and the files that it could not read so far."""

    loader: Loader
    faults: Faults = field(default_factory=Faults)


_open: WeakKeyDictionary[Split, dict[Any, Source]] = WeakKeyDictionary()


def is_installed(name: str) -> bool:
    """Whether the library of the loader `name` ("ffcv" or "dali") can be imported."""
    try:
        return find_spec(_MODULES[name]) is not None
    except ModuleNotFoundError:
        return False


def choose(split: Split, dataset: Dataset, device: torch.device) -> tuple[str, str]:
    """The loader's name and why it is chosen. Raises ValueError if the recipe's loader cannot read the split here."""
    is_packed, wanted = split.beton is not None, dataset.loader
    if split.images is not None:
        return "memory", "the images are kept in memory"
    if wanted == "auto":
        if is_packed:
            has_ffcv = is_installed("ffcv")
            name = "ffcv" if has_ffcv else "packed"
            reason = f"{split.beton} is packed, and FFCV is {'' if has_ffcv else 'not '}installed"
        elif device.type == "cuda" and is_installed("dali"):
            name, reason = "dali", "the images are files, DALI is installed and the device is a GPU"
        else:
            lacks = "DALI is not installed" if device.type == "cuda" else "the device is no GPU"
            name, reason = "folder", f"the images are files, and {lacks}"
    else:
        name, reason = wanted, "the recipe names it"
    if is_packed != (name in _PACKED):
        raise ValueError(
            f"dataset.loader {name!r} reads image files, but {split.beton} is packed; set it to ffcv, packed or auto"
            if is_packed
            else f"dataset.loader {name!r} needs train.beton and val.beton in the --data folder: make them with "
            "`fastcondense pack`, or set it to auto"
        )
    if name in _MODULES and not is_installed(name):
        raise ValueError(f"dataset.loader {name!r} needs a library that is not installed: {_INSTALL[name]}")
    return name, reason


def decoder_of(name: str) -> str | None:
    """What decodes the JPEG files of the loader `name`, with its version; None if their pixels are in memory."""
    if name in _MODULES:
        return f"{_DISTRIBUTIONS[name]} {version(_DISTRIBUTIONS[name])}"
    return None if name == "memory" else decoder()


def decoding_threads(dataset: Dataset) -> int:
    """Threads of this process that decode images: as many as the recipe says, or its part of the machine's cores."""
    on_this_machine = whole_number("LOCAL_WORLD_SIZE", 1, lowest=1)  # set by our launcher and by torchrun
    return dataset.workers or max(1, len(os.sched_getaffinity(0)) // on_this_machine)


def open_source(split: Split, dataset: Dataset, device: torch.device) -> Source:
    """The split's loader: the same object for the same settings, so that engines and workers outlive an epoch.

    Raises ValueError as `choose`.
    """
    name, _ = choose(split, dataset, device)
    threads = decoding_threads(dataset)
    key = name, threads, dataset.on_error, device
    sources = _open.setdefault(split, {})
    if key not in sources:
        sources[key] = Source(_LOADERS[name](split, threads, device), Faults(dataset.on_error))
    return sources[key]


def skipped(split: Split) -> dict[int, str]:
    """Samples of the split that were left out so far, with the reasons."""
    return {k: v for source in _open.get(split, {}).values() for k, v in source.faults.skipped.items()}


def _ffcv(split: Split, workers: int, _device: torch.device) -> Loader:
    from ..loaders.ffcv import FFCVLoader

    assert split.beton is not None
    return FFCVLoader(split.beton, split.rows, workers)


def _packed(split: Split, workers: int, _device: torch.device) -> Loader:
    assert split.beton is not None
    return PackedLoader(split.beton, split.rows, workers)


def _dali(split: Split, workers: int, device: torch.device) -> Loader:
    from ..loaders.dali import DALILoader

    return DALILoader(split.files, workers, device)


def _folder(split: Split, workers: int, _device: torch.device) -> Loader:
    return FolderLoader(split.files, workers)


_LOADERS: dict[str, Callable[[Split, int, torch.device], Loader]] = {
    "ffcv": _ffcv,
    "packed": _packed,
    "dali": _dali,
    "folder": _folder,
}
