"""What workers leave for their launcher, as files in a folder that it names: why they refuse, that they are cut off."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

FOLDER = "FASTCONDENSE_LAUNCHER"
"""The variable that names the folder; other launchers, such as torchrun, set none."""


def refuse(text: str) -> bool:
    """Leaves why this worker refuses its input, unless another has; False if there is no launcher to tell."""
    if FOLDER not in os.environ:
        return False
    try:
        with (Path(os.environ[FOLDER]) / "refusal").open("x") as file:
            file.write(text)
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


def report_cut(is_cut: bool = True) -> None:
    """Leaves that this worker has lost the others and ends; or that the one that has been started again has not."""
    if FOLDER in os.environ:
        path = Path(os.environ[FOLDER]) / f"cut-{os.environ['LOCAL_RANK']}"
        with contextlib.suppress(OSError):
            path.touch() if is_cut else path.unlink()


def read_refusal(folder: Path) -> str | None:
    """What a worker has refused; None if none has."""
    path = folder / "refusal"
    return path.read_text() if path.exists() else None


def count_cut(folder: Path) -> int:
    """Workers that have lost the others."""
    return len(list(folder.glob("cut-*")))
