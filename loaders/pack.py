"""Packs image files into a .beton file (beton.py): every file is decoded once, converted or kept, and accounted for.

Work goes on where it was killed, and the result has the same bytes as if it had not been: finished chunks of files lie
in ``<out>.partial``, and ``<out>.journal`` says which ones, with their hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image

from .beton import ALLOCATION, JPEG, RAW, SAMPLE, Sidecar, data_start, head, place, read_sidecar
from .folder import ImageFile

CHUNK = 128  # files a chunk: at most so many are encoded again after a kill, a worker
RAW_LIMIT = 8  # "mixed" stores pixels that take at most so many times the bytes of the JPEG
PAGE = 1 << 23
_LONGEST_PAGE = 1 << 31
Track = Callable[[Sequence[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class Packing:
    """How images are stored."""

    max_resolution: int = 500
    """Images whose longer side has more pixels are resized to it (antialiased); 0 resizes none."""
    encoding: Literal["jpeg", "raw", "mixed"] = "jpeg"
    """jpeg: the file's own bytes if it is an RGB or grey JPEG that need not be resized, else encoded; raw: pixels;
    mixed: pixels where the JPEG would save little, else the JPEG."""
    quality: int = 90
    """Of the JPEG files that are encoded here."""
    on_error: Literal["raise", "skip"] = "raise"
    """What happens to a file that is no image or is damaged: a ValueError names it, or it is left out and listed."""

    def check(self) -> None:
        """Raises ValueError if a value makes no sense."""
        if self.max_resolution < 0 or self.max_resolution > 65535:
            raise ValueError(f"max_resolution must be in 0 to 65535, got {self.max_resolution}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be in 1 to 100, got {self.quality}")


@dataclass(frozen=True)
class Stored:
    """An image as it is stored, or why it cannot be."""

    mode: int = JPEG
    width: int = 0
    height: int = 0
    data: bytes = b""
    error: str = ""


@dataclass
class _Journal:
    """Finished chunks: their samples in order and what was left out; `end` is where the next image may begin."""

    end: int
    samples: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)  # label, mode, w, h, place, length
    skipped: dict[str, str] = field(default_factory=dict)
    chunks: int = 0


def encode(path: Path, packing: Packing) -> Stored:
    """Decodes a file completely and says how it is stored; pixels are taken as they are, whatever EXIF says."""
    try:
        file = ImageFile.read(path)
        image, data = file.decode(), file.data
    except ValueError as error:
        return Stored(error=str(error))
    is_kept = file.header.format == "JPEG" and file.header.mode in ("RGB", "L")
    if packing.max_resolution and max(image.size) > packing.max_resolution:
        ratio = packing.max_resolution / max(image.size)
        image = image.resize([max(1, round(side * ratio)) for side in image.size], Image.Resampling.LANCZOS)
        is_kept = False
    if max(image.size) > 65535:
        return Stored(error=f"{path} has {image.width} x {image.height} pixels, more than a .beton file can hold")
    if packing.encoding != "raw" and not is_kept:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=packing.quality)
        data = stream.getvalue()
    num_pixel_bytes = 3 * image.width * image.height
    if packing.encoding == "raw" or (packing.encoding == "mixed" and num_pixel_bytes <= RAW_LIMIT * len(data)):
        return Stored(RAW, *image.size, image.tobytes())
    return Stored(JPEG, *image.size, data)


def _encode_chunk(files: Sequence[Path], packing: Packing) -> list[Stored]:
    return [encode(path, packing) for path in files]


def pack(
    files: Sequence[Path],
    labels: np.ndarray,
    classes: Sequence[str],
    out: Path,
    packing: Packing | None = None,
    *,
    source: Path,
    workers: int = 0,
    track: Track = lambda items, _: items,
) -> Sidecar:
    """Writes the files, in order, to the .beton file `out` and its sidecar, which is returned.

    labels: int64 [N], into classes. source: the folder that holds the files. workers: threads that decode and encode
    (Pillow does both without the interpreter's lock); 0 does it here, with the same bytes. track: yields what it is
    given, to show progress. If `out` holds these very files with these settings nothing is done; if the last packing of
    them was killed it goes on.
    Raises ValueError that names a file which cannot be stored, or if `out` is something else.
    """
    packing = packing or Packing()
    packing.check()
    sizes = [path.stat().st_size for path in files]
    identity = _identity(files, sizes, labels, classes, source, packing)
    partial, journal_path = (out.with_name(f"{out.name}.{end}") for end in ("partial", "journal"))
    if out.exists():
        if Sidecar.path(out).is_file() and read_sidecar(out).sha256 == identity:
            journal_path.unlink(missing_ok=True)
            return read_sidecar(out)
        raise ValueError(f"{out} exists and holds something else; remove it, or give another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    page_size = _page_size(sizes, packing)
    chunks = [files[k : k + CHUNK] for k in range(0, len(files), CHUNK)]
    with journal_path.open("a+b") as lines, partial.open("a+b") as data:
        _lock(lines, out)
        journal = _resume(data, lines, identity, data_start(len(files), page_size))
        todo = range(journal.chunks, len(chunks))
        encoded = _encode_all([chunks[k] for k in todo], packing, workers)
        for k, stored in zip(track(todo, f"packing {out.name}"), encoded, strict=True):
            rows = zip(chunks[k], labels[k * CHUNK : (k + 1) * CHUNK], stored, strict=True)
            _append(data, lines, journal, rows, source, page_size, packing.on_error)
        sidecar = _finish(data, journal, classes, page_size, source, files, identity, packing)
    _write_atomic(Sidecar.path(out), sidecar.json())
    partial.replace(out)
    journal_path.unlink()
    return sidecar


def _identity(
    files: Sequence[Path],
    sizes: Sequence[int],
    labels: np.ndarray,
    classes: Sequence[str],
    source: Path,
    packing: Packing,
) -> str:
    digest = hashlib.sha256(json.dumps([asdict(packing), list(classes)]).encode())
    for path, size, label in zip(files, sizes, labels, strict=True):
        digest.update(f"{label} {path.relative_to(source).as_posix()} {size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _page_size(sizes: Sequence[int], packing: Packing) -> int:
    """A power of two that holds any image: a file as it is, or max_resolution squared in pixels (JPEG is smaller)."""
    longest = max(PAGE, *sizes, 3 * packing.max_resolution**2)
    return 1 << (longest - 1).bit_length()


def _encode_all(chunks: Sequence[Sequence[Path]], packing: Packing, workers: int) -> Iterator[list[Stored]]:
    """Every chunk's images, in order; at most two chunks a worker wait."""
    if workers == 0:
        yield from (_encode_chunk(chunk, packing) for chunk in chunks)
        return
    waiting: deque[Future[list[Stored]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_encode_chunk, chunk, packing))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _resume(data: BinaryIO, lines: BinaryIO, identity: str, start: int) -> _Journal:
    """What the journal says and the data confirm; anything beyond is cut off."""
    journal = _Journal(start)
    lines.seek(0)
    first, *rest = lines.read().split(b"\n")
    if first == identity.encode():
        valid = len(first) + 1
        for line in rest[:-1]:  # what follows the last line break was torn
            chunk = json.loads(line)
            data.seek(journal.end)
            if hashlib.sha256(data.read(chunk["end"] - journal.end)).hexdigest() != chunk["sha256"]:
                break
            journal.samples += [tuple(row) for row in chunk["samples"]]
            journal.skipped |= chunk["skipped"]
            journal.end, journal.chunks, valid = chunk["end"], journal.chunks + 1, valid + len(line) + 1
        lines.truncate(valid)
    else:
        lines.truncate(0)
        lines.write(identity.encode() + b"\n")
    data.truncate(journal.end)
    return journal


def _append(
    data: BinaryIO,
    lines: BinaryIO,
    journal: _Journal,
    rows: Iterable[tuple[Path, int, Stored]],
    source: Path,
    page_size: int,
    on_error: str,
) -> None:
    """Writes a chunk's images and its line in the journal, each flushed to disk before the next begins."""
    chunk, samples, skipped, at = bytearray(), [], {}, journal.end
    for path, label, stored in rows:
        error = stored.error
        if not error and len(stored.data) > page_size:
            error = f"{path} takes {len(stored.data)} bytes, more than a page of {page_size}: give a max_resolution"
        if error and on_error == "raise":
            raise ValueError(error)
        if error:
            skipped[path.relative_to(source).as_posix()] = error
            continue
        begin = place(at, len(stored.data), page_size)
        chunk += bytes(begin - at) + stored.data
        at = begin + len(stored.data)
        samples.append((int(label), stored.mode, stored.width, stored.height, begin, len(stored.data)))
    data.write(chunk)
    _flush(data)
    line = {"end": at, "sha256": hashlib.sha256(chunk).hexdigest(), "samples": samples, "skipped": skipped}
    lines.write(json.dumps(line).encode() + b"\n")
    _flush(lines)
    journal.samples += samples
    journal.skipped |= skipped
    journal.end, journal.chunks = at, journal.chunks + 1


def _finish(
    data: BinaryIO,
    journal: _Journal,
    classes: Sequence[str],
    page_size: int,
    source: Path,
    files: Sequence[Path],
    identity: str,
    packing: Packing,
) -> Sidecar:
    """Writes what stands after and before the pages."""
    samples, allocations = np.zeros(len(journal.samples), SAMPLE), np.zeros(len(journal.samples), ALLOCATION)
    for k, (label, mode, width, height, begin, length) in enumerate(journal.samples):
        samples[k] = (mode, width, height, begin), label
        allocations[k] = k, begin, length
    data.write(allocations.tobytes())
    data.flush()
    with open(data.name, "r+b") as file:  # `data` appends only
        file.write(head(samples, page_size, journal.end))
        _flush(file)
    counts = np.bincount(samples["label"], minlength=len(classes))
    return Sidecar(
        tuple(classes),
        tuple(counts.tolist()),
        source.resolve().name,
        len(files),
        identity,
        asdict(packing),
        journal.end + allocations.nbytes,
        journal.skipped,
    )


def _lock(file: BinaryIO, out: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process that holds it
    except BlockingIOError:
        raise ValueError(f"another process is packing {out}") from None


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _write_atomic(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        _flush(file)
    temporary.replace(path)
