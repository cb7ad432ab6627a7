"""Optional trackers: what a run tells goes to TensorBoard, and from there to Weights & Biases. No part of a recipe.

Numbers of an event are scalars named KIND/WHAT/FIELD over its epoch or job; pictures come when they are made.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .files import slug

TrackerName = Literal["tensorboard", "wandb"]
_STEPS = ("epoch", "index")
"""Fields that are where an event stands, the first that it has."""


def need(name: str, library: str) -> Any:
    """The library behind a tracker. Raises ValueError that says how to install it."""
    try:
        return importlib.import_module(library)
    except ImportError:
        missing = "tensorboard" if library == "torch.utils.tensorboard" else library
        raise ValueError(f"--track {name} needs the library {missing}: pip install 'fastcondense[logging]'") from None


def open_trackers(names: Sequence[str], out: Path, title: str, settings: Mapping[str, Any]) -> list[Tracker]:
    """The tracker of a run in `out`, if any is asked for. Raises ValueError for a library that is missing."""
    return [Tracker(names, out, title, settings)] if names else []


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


class Tracker:
    """Event files in tensorboard/ of the run, which `tensorboard --logdir RUN` shows; wandb also sends them on.

    wandb's run is of the project fastcondense, in wandb/ of the run's folder; WANDB_MODE and WANDB_PROJECT count.
    """

    def __init__(self, names: Sequence[str], out: Path, title: str, settings: Mapping[str, Any]):
        library, self.synced = need(names[0], "torch.utils.tensorboard"), None
        if "wandb" in names:  # before the writer is made, which it listens to
            project = os.environ.get("WANDB_PROJECT", "fastcondense")
            about = {"project": project, "name": title, "dir": str(out), "config": dict(settings)}
            self.synced = need("wandb", "wandb").init(sync_tensorboard=True, **about)
        self.writer = library.SummaryWriter(str(out / "tensorboard"))
        self.writer.add_text("recipe", f"    {title}\n    {dict(settings)}")

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)

    def picture(self, name: str, path: Path) -> None:
        import numpy as np  # options and logs need this module, but no arrays
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image(name, np.array(image.convert("RGB")), dataformats="HWC")

    def close(self) -> None:
        self.writer.close()
        if self.synced is not None:
            self.synced.finish()
