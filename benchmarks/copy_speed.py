"""GB/s of a large copy, bytes read and bytes written: the ceiling that other figures are shares of."""

from __future__ import annotations

import argparse
from typing import Any

from measure import copy_ceiling
from session import Session

QUICK: dict[str, Any] = {}


def add_options(_: argparse.ArgumentParser) -> None:
    """It has none."""


def run(session: Session, _: argparse.Namespace) -> None:
    speed = round(copy_ceiling(), 1)
    print(f"a copy moves {speed} GB/s")
    session.add("copy", "PyTorch", dtype="uint8", **{"copy_GB/s": speed})
