"""Packs image files into a .beton file (beton.py): every file is decoded once, converted or kept, and accounted for.

Work goes on where it was killed, and the result has the same bytes as if it had not been: finished chunks of files lie
in ``<out>.partial``, and ``<out>.journal`` says which ones, with their hash.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image

from .beton import ALLOCATION, CRC, JPEG, RAW, SAMPLE, Sidecar, data_start, head, place, read_sidecar
from .complete import Track
from .folder import ImageFile
from .reading import read_file, writing

_FORMAT = 2  # of .beton file, sidecar and journal
CHUNK = 128  # files a chunk: at most so many are encoded again after a kill, a worker
RAW_LIMIT = 8  # "mixed" stores pixels that take at most so many times the bytes of the JPEG
PAGE = 1 << 23
_LONGEST_PAGE = 1 << 31
_SAMPLED = 32  # files whose bytes tell them from others
_LONGEST_SIDE = 4096  # of pixels that are stored without a max_resolution


@dataclass(frozen=True)
class Packing:
    """The settings of a packed file: how images are stored."""

    max_resolution: int = 500
    """Images whose longer side has more pixels are resized to it (antialiased); 0 resizes none."""
    encoding: Literal["jpeg", "raw", "mixed"] = "jpeg"
    """jpeg: the file's own bytes if it is an RGB or grey JPEG that need not be resized, else encoded; raw: pixels;
    mixed: pixels where the JPEG would save little, else the JPEG."""
    quality: int = 90
    """Quality of the JPEG files that are encoded here."""

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
    on_error: Literal["raise", "skip"] = "raise",
    track: Track = lambda items, _: items,
) -> Sidecar:
    """Writes the files, in order, to the .beton file `out` and its sidecar, which is returned.

    labels: int64 [N], into classes. source: the folder that holds the files. workers: threads that decode and encode
    (Pillow does both without the interpreter's lock); 0 does it here, with the same bytes. on_error: whether a file
    that is no image or is damaged raises, or is left out and listed. track: yields what it is given, to show progress.
    If `out` holds these very files with these settings nothing is done; if their packing was stopped it goes on.
    Raises ValueError that names a file which cannot be stored, or if `out` is something else.
    """
    packing = packing or Packing()
    packing.check()
    sizes = [path.stat().st_size if path.exists() else 0 for path in files]
    identity = _identity(files, sizes, labels, classes, source, packing)
    if out.exists():
        if Sidecar.path(out).is_file() and read_sidecar(out).sha256 == identity:
            out.with_name(f"{out.name}.journal").unlink(missing_ok=True)  # stopped at the last moment
            return read_sidecar(out)
        raise ValueError(f"{out} exists and holds something else; remove it, or give another name")
    chunks = [files[k : k + CHUNK] for k in range(0, len(files), CHUNK)]
    with writing(out), _Partial(out, identity, len(files), _page_size(sizes, packing)) as partial:
        if on_error == "raise" and partial.skipped:
            raise ValueError(next(iter(partial.skipped.values())))
        todo = range(partial.chunks, len(chunks))
        encoded = _encode_all([chunks[k] for k in todo], packing, workers)
        for k, images in zip(track(todo, f"packing {out.name}"), encoded, strict=True):
            names = [path.relative_to(source).as_posix() for path in chunks[k]]
            partial.append(names, labels[k * CHUNK : (k + 1) * CHUNK].tolist(), images, on_error)
        counts, length, *index = partial.finish(len(classes))
        about = (source.resolve().name, len(files), identity, asdict(packing), length, partial.skipped)
        sidecar = Sidecar(tuple(classes), counts, *about).sealed(*index)
        partial.publish(sidecar)
    return sidecar


def _identity(
    files: Sequence[Path],
    sizes: Sequence[int],
    labels: np.ndarray,
    classes: Sequence[str],
    source: Path,
    packing: Packing,
) -> str:
    digest = hashlib.sha256(json.dumps([_FORMAT, asdict(packing), list(classes)]).encode())
    for path, size, label in zip(files, sizes, labels, strict=True):
        digest.update(f"{label} {path.relative_to(source).as_posix()} {size}\n".encode(errors="surrogateescape"))
    for number in np.unique(np.linspace(0, max(0, len(files) - 1), _SAMPLED).astype(np.int64)).tolist():
        with contextlib.suppress(ValueError):  # met, and named, when it is packed
            digest.update(read_file(files[number]))  # others of the same names and sizes are other images
    return digest.hexdigest()


def _page_size(sizes: Sequence[int], packing: Packing) -> int:
    """A power of two that holds any file as it is, and max_resolution squared in pixels (as JPEG they are fewer)."""
    side = packing.max_resolution or (0 if packing.encoding == "jpeg" else _LONGEST_SIDE)
    longest = max(PAGE, max(sizes, default=0), 3 * side**2)
    return min(1 << (longest - 1).bit_length(), _LONGEST_PAGE)


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


class _Partial:
    """The unfinished file ``<out>.partial``, and ``<out>.journal``: a line for the job, then one for each chunk."""

    def __init__(self, out: Path, identity: str, num_files: int, page_size: int):
        self.out, self.identity, self.page_size = out, identity, page_size
        self.path, self.journal_path = (out.with_name(f"{out.name}.{end}") for end in ("partial", "journal"))
        self.end = data_start(num_files, page_size)
        """The byte at which the next image may begin."""
        self.chunks = 0
        self.samples: list[np.ndarray] = []
        """Of each chunk, int64 [n, 7]: label, mode, width, height, place, length, CRC-32. As objects they take several
        times as much."""
        self.skipped: dict[str, str] = {}

    def __enter__(self) -> _Partial:
        """Takes up what the journal says and the data confirm; anything beyond is cut off."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.journal, self.data = self.journal_path.open("a+b"), self.path.open("a+b")
        _lock(self.journal, self.out)
        self.journal.seek(0)
        first, *lines = self.journal.read().split(b"\n")
        is_ours, confirmed = first == self.identity.encode(), len(first) + 1
        for line in lines[:-1] if is_ours else ():  # what follows the last line break was torn
            chunk = self._confirmed(line)
            if chunk is None:
                break
            self._take(chunk)
            confirmed += len(line) + 1
        self.journal.truncate(confirmed if is_ours else 0)
        self.data.truncate(self.end)
        if not is_ours:
            self.journal.write(self.identity.encode() + b"\n")
        return self

    def _confirmed(self, line: bytes) -> dict[str, Any] | None:
        """The chunk of a line in the journal, if its bytes are there; None for damage in either."""
        with contextlib.suppress(Exception):
            chunk = json.loads(line)
            self.data.seek(self.end)
            if hashlib.sha256(self.data.read(chunk["end"] - self.end)).hexdigest() == chunk["sha256"]:
                return dict(chunk)
        return None

    def __exit__(self, *_: object) -> None:
        self.journal.close()
        self.data.close()

    def _take(self, chunk: dict[str, Any]) -> None:
        self.samples.append(np.array(chunk["samples"], np.int64).reshape(-1, 7))
        self.skipped |= chunk["skipped"]
        self.end, self.chunks = chunk["end"], self.chunks + 1

    def append(self, names: Sequence[str], labels: Sequence[int], images: Sequence[Stored], on_error: str) -> None:
        """Writes a chunk's images, then its line in the journal, each flushed to disk before the next begins."""
        data, samples, skipped, at = bytearray(), [], {}, self.end
        for name, label, image in zip(names, labels, images, strict=True):
            error, length = image.error, len(image.data)
            if length > self.page_size:
                error = f"{name} takes {length} bytes, more than a page of {self.page_size}: give a max_resolution"
            if error and on_error == "raise":
                raise ValueError(error)
            if error:
                skipped[name] = error
                continue
            begin = place(at, length, self.page_size)
            data += bytes(begin - at) + image.data
            at = begin + length
            samples.append((label, image.mode, image.width, image.height, begin, length, zlib.crc32(image.data)))
        self.data.write(data)
        _flush(self.data)
        chunk = {"end": at, "sha256": hashlib.sha256(data).hexdigest(), "samples": samples, "skipped": skipped}
        self.journal.write(json.dumps(chunk).encode() + b"\n")
        _flush(self.journal)
        self._take(chunk)

    def finish(self, num_classes: int) -> tuple[tuple[int, ...], int, bytes, bytes]:
        """Writes what stands after and before the pages; returns the samples of each class, the file's length, and what
        stands before and after."""
        label, mode, width, height, begin, length, crc = np.concatenate([np.zeros((0, 7), np.int64), *self.samples]).T
        samples, allocations = np.zeros(len(label), SAMPLE), np.zeros(len(label), ALLOCATION)
        samples["label"] = label
        for name, column in (("mode", mode), ("width", width), ("height", height), ("data_ptr", begin)):
            samples["image"][name] = column
        for name, column in (("sample", np.arange(len(label))), ("place", begin), ("length", length)):
            allocations[name] = column
        crcs = crc.astype(CRC).tobytes()
        before, after = head(samples, self.page_size, self.end + len(crcs)), crcs + allocations.tobytes()
        self.data.write(after)
        _flush(self.data)
        with self.path.open("r+b") as file:  # `data` appends only
            file.write(before)
            _flush(file)
        counts = tuple(np.bincount(samples["label"], minlength=num_classes).tolist())
        return counts, self.end + len(after), before, after

    def publish(self, sidecar: Sidecar) -> None:
        """Gives the file its name; the sidecar is there before."""
        temporary = self.out.with_name(f".{self.out.name}.json.tmp")
        with temporary.open("wb") as file:
            file.write(sidecar.json())
            _flush(file)
        temporary.replace(Sidecar.path(self.out))
        self.path.replace(self.out)
        self.journal_path.unlink()


def _lock(file: BinaryIO, out: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process that holds it
    except BlockingIOError:
        raise ValueError(f"another process is packing {out}") from None


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
