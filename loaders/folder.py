"""Image files decoded on the CPU: those of any kind that Pillow reads, and what other loaders leave to it."""

from __future__ import annotations

import functools
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .reading import naming, read_file, reading
from .resize import NUM_COLUMNS, central, cut_square, resized, table_of_cuts
from .source import Cut, Faults
from .turbo import decoded

Item = TypeVar("Item")
_FORMATS = "JPEG MPO PNG BMP DIB WEBP PPM TIFF GIF JPEG2000 AVIF".split()  # of the endings in class_folders
_MOST_PIXELS = 60_000_000  # beyond one a byte of the file
AHEAD = 2  # batches that are read, and as many that are decoded, before they are asked for


# --- one file --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageFile:
    """A file's bytes and what its header says; pixels are decoded when they are asked for."""

    path: Path
    data: bytes
    header: Image.Image
    """Opened lazily: size, mode and format are known."""

    @staticmethod
    def read(path: Path) -> ImageFile:
        """Opens a file. Raises ValueError that names one which is missing, empty or not an image."""
        with reading(path):
            return ImageFile.of(path, read_file(path))

    @staticmethod
    def of(path: Path, data: bytes) -> ImageFile:
        """Opens a file of these bytes, as `read`; `path` is what messages call it."""
        with naming(path):
            try:
                return ImageFile(path, data, open_image(io.BytesIO(data)))
            except UnidentifiedImageError:
                raise ValueError(f"{path} is not an image") from None

    def decode(self) -> Image.Image:
        """The image in RGB, as it is stored: not turned by its EXIF orientation. Raises ValueError that names it.

        16 bits a channel are scaled to 8, and what is transparent stands before white.
        """
        with naming(self.path):
            self._check_size()
            has_more = has_more_bits(self.header)  # it is known until the pixels are read
            self.header.load()
            return _rgb(self.header, has_more)

    def pixels(self) -> np.ndarray:
        """The pixels of `decode`, uint8 [H, W, 3], by the faster decoder where there is one. Raises as `decode`."""
        with naming(self.path):
            self._check_size()
            pixels = decoded(self.data, self.header)
        return np.asarray(self.decode()) if pixels is None else pixels

    def _check_size(self) -> None:
        width, height = self.header.size
        if width * height > _MOST_PIXELS + len(self.data):
            raise ValueError(f"it claims {width} x {height} pixels, in {len(self.data):,} bytes")


def open_image(file: BinaryIO) -> Image.Image:
    """The header of an image of a format that we read, whatever the file is called: Pillow starts programs for some
    others, Ghostscript for PostScript. Raises UnidentifiedImageError, or whatever damaged bytes ask for.
    """
    try:
        return Image.open(file, formats=_readable())
    except UnidentifiedImageError:
        raise UnidentifiedImageError("it is not an image") from None  # Pillow's words name an object


@functools.cache
def _readable() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def has_more_bits(header: Image.Image) -> bool:
    """Whether an image that is open, and not read yet, has more than 8 bits a channel."""
    return header.mode[0] in "IF" or any(";16" in str(tile[-1]) for tile in getattr(header, "tile", ()))


def _rgb(image: Image.Image, has_more: bool) -> Image.Image:
    if (image.mode == "I" and image.format in ("PNG", "PPM")) or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        if (highest := int(values.max(initial=0))) and (bits := next((k for k in (8, 12) if highest < 1 << k), None)):
            raise OSError(f"it has 16 bits, but no value above {(1 << bits) - 1}: is it an image of {bits} bits?")
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise OSError(
            f"its pixels are {'integers of 32 bits' if image.mode == 'I' else 'floats'}: save it with 8 or 16"
        )
    elif has_more and np.asarray(image.convert("RGB")).max(initial=0) < 16:  # the upper of two bytes
        raise OSError("it has 16 bits, but no value above 4095: is it an image of 8 or 12 bits?")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def decode(path: Path) -> Image.Image:
    """The image in RGB. Raises ValueError that names a file which is missing, truncated or not an image."""
    return ImageFile.read(path).decode()


def cut_center(image: Image.Image, resize: int, size: int) -> Image.Image:
    """Short side to `resize`, then the central size x size square, as torchvision's Resize and CenterCrop."""
    height, width = resized(image.height, image.width, resize)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    top, left = central(height, size), central(width, size)
    return image.crop((left, top, left + size, top + size))


# --- many ------------------------------------------------------------------------------------------------------------


class Workers:
    """Threads, or the caller's own if there are none. Decoders and numba work without the interpreter's lock."""

    def __init__(self, count: int):
        self.pool = ThreadPoolExecutor(count, "decode") if count else None

    def start(self, function: Callable[..., Item], *arguments: Any) -> Future[Item | ValueError]:
        """Runs the function; its result, or the ValueError that it raised, comes with the future."""
        if self.pool is not None:
            return self.pool.submit(_attempt, function, *arguments)
        done: Future[Item | ValueError] = Future()
        done.set_result(_attempt(function, *arguments))
        return done

    def ahead(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each drawn AHEAD items before it is yielded: what it started runs meanwhile."""
        drawn: deque[Item] = deque()
        for item in items:
            drawn.append(item)
            if self.pool is None or len(drawn) > AHEAD:
                yield drawn.popleft()
        yield from drawn

    def read(
        self, read: Callable[[int], ImageFile], ids: Iterable[np.ndarray]
    ) -> Iterator[tuple[np.ndarray, list[Any]]]:
        """Every array of ids with what `read` makes of its samples, or the ValueError that it raised, a list."""
        started = ((batch, [self.start(read, int(sample)) for sample in batch]) for batch in ids)
        for batch, reads in self.ahead(started):
            yield batch, [file.result() for file in reads]


def _attempt(function: Callable[..., Item], *arguments: Any) -> Item | ValueError:
    try:
        return function(*arguments)
    except ValueError as error:
        return error


def cuts_of_files(files: Sequence[ImageFile | ValueError], batch: np.ndarray, cut: Cut) -> np.ndarray:
    """Table of cuts of a batch, int32 [B, 11] (resize.py); rows of files that could not be read are 0."""
    table = np.zeros((len(batch), NUM_COLUMNS), dtype=np.int32)
    sizes = {k: file.header.size for k, file in enumerate(files) if isinstance(file, ImageFile)}
    if sizes:
        read, (widths, heights) = list(sizes), np.array(list(sizes.values())).T
        table[read] = table_of_cuts(cut, batch[read], heights, widths)
    return table


def write_square(file: ImageFile | ValueError, row: np.ndarray, out: np.ndarray) -> None:
    """Decodes and cuts the file into out, uint8 [size, size, 3], by its row of a table of cuts; or raises the error."""
    if isinstance(file, ValueError):
        raise file
    cut_square(file.pixels(), row, out)


def finished(
    batch: np.ndarray, pixels: Tensor, outcomes: Sequence[Any], faults: Faults
) -> tuple[Tensor, Tensor] | None:
    """pixels [B, S, S, 3] as [b, 3, S, S] with the ids of those samples whose outcome is no error; None if none is."""
    for sample, outcome in zip(batch, outcomes, strict=True):
        if isinstance(outcome, ValueError):
            faults.meet(int(sample), outcome)
    kept = [k for k, outcome in enumerate(outcomes) if not isinstance(outcome, ValueError)]
    if len(kept) < len(batch):
        batch, pixels = batch[kept], pixels[kept]
    return (pixels.permute(0, 3, 1, 2), torch.from_numpy(batch.astype(np.int64))) if kept else None


class FolderLoader:
    """Image files of any kind that Pillow reads, decoded by `workers` threads; a Loader (source.py)."""

    def __init__(self, files: Sequence[Path], workers: int):
        self.files, self.workers = files, Workers(workers)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, sample: int) -> ImageFile:
        """Opens a sample. Raises ValueError that names what cannot be read."""
        return ImageFile.read(self.files[sample])

    def batches(self, ids: Sequence[np.ndarray], cut: Cut, faults: Faults) -> Iterator[tuple[Tensor, Tensor]]:
        """See source.Loader. Batches are channels_last."""
        started = (self._start(batch, files, cut) for batch, files in self.workers.read(self.read, ids))
        for batch, pixels, outcomes in self.workers.ahead(started):
            if result := finished(batch, pixels, [outcome.result() for outcome in outcomes], faults):
                yield result

    def _start(self, batch: np.ndarray, files: list[Any], cut: Cut) -> tuple[np.ndarray, Tensor, list[Future[Any]]]:
        pixels = torch.empty(len(batch), cut.size, cut.size, 3, dtype=torch.uint8)
        jobs = zip(files, cuts_of_files(files, batch, cut), pixels.numpy(), strict=True)
        return batch, pixels, [self.workers.start(write_square, *job) for job in jobs]
