"""Are image files whole? Their beginnings and ends say so, long before a decoder comes to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .folder import decode, has_more_bits, open_image
from .reading import open_file

_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 1 << 12
"""Bytes at a file's end that hold its mark: some cameras and editors write more behind it."""
_TOGETHER = 1 << 12
Track = Callable[[Sequence[Any], str], Iterable[Any]]


def fault(path: Path) -> str:
    """Why a file cannot be read as an image; empty if it can. Only files that look cut off, that have more than 8 bits,
    or that are neither JPEG nor PNG, are decoded.
    """
    try:
        with open_file(path) as file:
            image = open_image(file)
            end = None if has_more_bits(image) else _ENDS.get(image.format or "")
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            is_whole = end is not None and end in file.read()
    except Exception:  # what damaged bytes raise has no list; the decoder names it
        is_whole = False
    if not is_whole:
        try:
            decode(path)
        except ValueError as error:
            return str(error)
    return ""


def check_files(
    files: Sequence[Path], workers: int, track: Track, on_good: Callable[[int], None] = lambda _: None
) -> None:
    """Raises ValueError for the first of the files that cannot be read, and says how many more there are.

    on_good: is told how many of the first files are whole, now and then.
    """
    faults: list[str] = []
    starts = range(0, len(files), _TOGETHER)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in track(starts, "checking image files") if len(starts) > 1 else starts:
            part = files[start : start + _TOGETHER]
            faults += [text for text in pool.map(fault, part) if text]
            if not faults:
                on_good(start + len(part))
    if faults:
        more = f" (and {len(faults) - 1} more files)" if len(faults) > 1 else ""
        raise ValueError(f"{faults[0]}{more}; mend or remove them, or leave them out by on_error skip")
