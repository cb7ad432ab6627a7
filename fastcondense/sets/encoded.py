"""The images of a condensed set as image files."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from .condensed import CondensedSet

_ENCODED_TOGETHER = 256


@dataclass(frozen=True)
class EncodedImage:
    """A file's name, of the form that RDED gave it, and its bytes."""

    label: int
    name: str
    data: bytes


def encode(condensed: CondensedSet, rows: range, jpeg: int) -> Iterator[EncodedImage]:
    """Images number `rows` of the set, class by class, as PNG, or as JPEG of quality `jpeg` if that is not 0."""

    def encoded(row: int, pixels: Tensor) -> EncodedImage:
        label, slot = divmod(row, condensed.ipc)
        image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
        file = io.BytesIO()
        if jpeg:
            image.save(file, "JPEG", quality=jpeg, subsampling=0)
        else:
            image.save(file, "PNG")
        return EncodedImage(label, f"class{label:05d}_id{slot:05d}.{'jpg' if jpeg else 'png'}", file.getvalue())

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow compresses without the interpreter's lock
        for begin in range(0, len(rows), _ENCODED_TOGETHER):  # no more than these are kept at once
            part = rows[begin : begin + _ENCODED_TOGETHER]
            yield from pool.map(encoded, part, condensed.rows(part))
