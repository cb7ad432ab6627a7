"""Optional trackers: what a run tells goes to TensorBoard or Weights & Biases too. No part of a recipe.

Numbers of an event are scalars named KIND/WHAT/FIELD over its epoch or job; pictures come when they are made.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from PIL import Image

from .files import slug

TrackerName = Literal["tensorboard", "wandb"]
_STEPS = ("epoch", "index")
"""Fields that are where an event stands, the first that it has."""


class Tracker(Protocol):
    """Takes what a run tells."""

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None: ...
    def picture(self, name: str, path: Path) -> None: ...
    def close(self) -> None: ...


def need(name: str, library: str) -> Any:
    """The library behind a tracker. Raises ValueError that says how to install it."""
    try:
        return importlib.import_module(library)
    except ImportError:
        raise ValueError(f"--track {name} needs the library {name}: pip install 'fastcondense[logging]'") from None


def open_trackers(names: Sequence[str], out: Path, title: str, settings: Mapping[str, Any]) -> list[Tracker]:
    """The trackers of a run in `out`. Raises ValueError for a library that is missing, before any is opened."""
    kinds: dict[str, tuple[str, type]] = {
        "tensorboard": ("torch.utils.tensorboard", TensorBoard),
        "wandb": ("wandb", WeightsAndBiases),
    }
    assert kinds.keys() == set(get_args(TrackerName))
    found = [(kinds[name][1], need(name, kinds[name][0])) for name in dict.fromkeys(names)]
    return [kind(library, out, title, settings) for kind, library in found]


def scalars_of(kind: str, fields: Mapping[str, Any]) -> tuple[str, dict[str, float], int]:
    """Group, numbers and step of an event; those that say where it stands are no scalars."""
    step = next((int(fields[name]) for name in _STEPS if name in fields), 0)
    what = next((fields[name] for name in ("what", "architecture", "stage") if name in fields), "")
    numbers = {
        name: float(value)
        for name, value in fields.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in _STEPS
    }
    return f"{kind}/{slug(str(what))}" if what else kind, numbers, step


class TensorBoard:
    """Event files in tensorboard/ of the run; `tensorboard --logdir RUN` shows them."""

    def __init__(self, library: Any, out: Path, title: str, settings: Mapping[str, Any]):
        self.writer = library.SummaryWriter(str(out / "tensorboard"))
        self.writer.add_text("recipe", f"    {title}\n    {dict(settings)}")

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)

    def picture(self, name: str, path: Path) -> None:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB")))
        self.writer.add_image(name, pixels, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the project fastcondense, in wandb/ of the run's folder; WANDB_MODE and WANDB_PROJECT are respected."""

    def __init__(self, library: Any, out: Path, title: str, settings: Mapping[str, Any]):
        self.library = library
        self.run = library.init(
            project=os.environ.get("WANDB_PROJECT", "fastcondense"), name=title, dir=str(out), config=dict(settings)
        )
        self.groups: set[str] = set()

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        if group not in self.groups:  # stages count their own steps
            self.groups.add(group)
            self.run.define_metric(f"{group}/*", step_metric=f"{group}/step")
        self.run.log({f"{group}/step": step} | {f"{group}/{name}": value for name, value in values.items()})

    def picture(self, name: str, path: Path) -> None:
        self.run.log({name: self.library.Image(str(path))})

    def close(self) -> None:
        self.run.finish()
