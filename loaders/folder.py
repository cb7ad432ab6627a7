"""Image files decoded by Pillow: the dependency-light loader, and the truth for tests of the others."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageChops, UnidentifiedImageError
from torch import Tensor

from .reading import naming, reading
from .source import Centered, Cut, Faults

Item = TypeVar("Item")
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
            return ImageFile.of(path, path.read_bytes())

    @staticmethod
    def of(path: Path, data: bytes) -> ImageFile:
        """Opens a file of these bytes, as `read`; `path` is what messages call it."""
        with naming(path):
            try:
                return ImageFile(path, data, Image.open(io.BytesIO(data)))
            except UnidentifiedImageError:
                raise ValueError(f"{path} is not an image") from None

    def decode(self) -> Image.Image:
        """The image in RGB, as it is stored: not turned by its EXIF orientation. Raises ValueError that names it.

        16 bits a channel are scaled to 8, and what is transparent stands before white.
        """
        with naming(self.path):
            width, height = self.header.size
            if width * height > _MOST_PIXELS + len(self.data):
                raise ValueError(f"it claims {width} x {height} pixels, in {len(self.data):,} bytes")
            is_deep = any(";16" in str(tile[-1]) for tile in getattr(self.header, "tile", ()))
            self.header.load()
            return _rgb(self.header, is_deep)


def _rgb(image: Image.Image, is_deep: bool) -> Image.Image:
    if (image.mode == "I" and image.format in ("PNG", "PPM")) or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        if (highest := int(values.max(initial=0))) and (bits := next((k for k in (8, 12) if highest < 1 << k), None)):
            raise OSError(f"it has 16 bits, but no value above {(1 << bits) - 1}: is it an image of {bits} bits?")
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    elif (
        is_deep and np.asarray(image.getchannel(0) if image.mode == "LA" else image.convert("RGB")).max(initial=0) < 16
    ):
        # Pillow keeps the upper of two bytes of colours
        raise OSError("it has 16 bits, but no value above 4095: is it an image of 8 or 12 bits?")
    elif image.mode in ("I", "F"):
        raise OSError(
            f"its pixels are {'integers of 32 bits' if image.mode == 'I' else 'floats'}: save it with 8 or 16"
        )
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def decode(path: Path) -> Image.Image:
    """The image in RGB. Raises ValueError that names a file which is missing, truncated or not an image."""
    return ImageFile.read(path).decode()


def cut_window(image: Image.Image, window: Iterable[int], size: int) -> Image.Image:
    """Crop to the window (top, left, height, width, flip, roll_y, roll_x), resize to size x size, mirror, roll."""
    top, left, height, width, flip, roll_y, roll_x = (int(value) for value in window)
    square = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
    square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else square
    return ImageChops.offset(square, roll_x, roll_y) if roll_x or roll_y else square  # circular


def resized(height: int, width: int, resize: int) -> tuple[int, int]:
    """Height and width after the short side is resized to `resize`, rounded as torchvision's Resize does."""
    long = int(resize * max(height, width) / min(height, width))
    return (long, resize) if width <= height else (resize, long)


def central(have: int, size: int) -> int:
    """The first of the central `size` of `have` pixels; negative if there are fewer. As torchvision's CenterCrop."""
    # torchvision rounds a cut to even, and pads the smaller half first where the image is too small
    return round((have - size) / 2) if have >= size else -((size - have) // 2)


def cut_center(image: Image.Image, resize: int, size: int) -> Image.Image:
    """Short side to `resize`, then the central size x size square, as torchvision's Resize and CenterCrop."""
    height, width = resized(image.height, image.width, resize)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    top, left = central(height, size), central(width, size)
    return image.crop((left, top, left + size, top + size))


# --- many ------------------------------------------------------------------------------------------------------------


class Workers:
    """Threads, or the caller's own if there are none. Pillow decodes and resizes without the interpreter's lock."""

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

    def read(self, files: Sequence[Path], ids: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, list[Any]]]:
        """Every array of ids with its samples' ImageFile, or ValueError, a list."""
        started = ((batch, [self.start(ImageFile.read, files[sample]) for sample in batch]) for batch in ids)
        for batch, reads in self.ahead(started):
            yield batch, [read.result() for read in reads]


def _attempt(function: Callable[..., Item], *arguments: Any) -> Item | ValueError:
    try:
        return function(*arguments)
    except ValueError as error:
        return error


def windows_of_files(files: Sequence[ImageFile | ValueError], batch: np.ndarray, cut: Cut) -> np.ndarray:
    """Window table of a batch, int32 [B, 7]; rows of files that could not be read, and of Centered, are 0."""
    table = np.zeros((len(batch), 7), dtype=np.int32)
    sizes = {k: (file.header.height, file.header.width) for k, file in enumerate(files) if isinstance(file, ImageFile)}
    if sizes and not isinstance(cut, Centered):
        read, (heights, widths) = list(sizes), np.array(list(sizes.values())).T
        table[read] = cut.windows_of(batch[read], heights, widths)
    return table


def write_square(file: ImageFile, cut: Cut, window: np.ndarray, out: np.ndarray) -> None:
    """Decodes and cuts the file into out, uint8 [size, size, 3]."""
    image = file.decode()
    if isinstance(cut, Centered):
        out[...] = np.asarray(cut_center(image, cut.resize, cut.size))
    else:
        out[...] = np.asarray(cut_window(image, window, cut.size))


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
        self.files, self.workers = tuple(files), Workers(workers)

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, ids: Sequence[np.ndarray], cut: Cut, faults: Faults) -> Iterator[tuple[Tensor, Tensor]]:
        """See source.Loader. Batches are channels_last."""
        started = (self._start(batch, files, cut) for batch, files in self.workers.read(self.files, ids))
        for batch, pixels, outcomes in self.workers.ahead(started):
            if result := finished(batch, pixels, [outcome.result() for outcome in outcomes], faults):
                yield result

    def _start(self, batch: np.ndarray, files: list[Any], cut: Cut) -> tuple[np.ndarray, Tensor, list[Future[Any]]]:
        pixels = torch.empty(len(batch), cut.size, cut.size, 3, dtype=torch.uint8)
        table, slots = windows_of_files(files, batch, cut), pixels.numpy()
        jobs = zip(files, table, slots, strict=True)
        return batch, pixels, [self.workers.start(_write_if_read, file, cut, row, slot) for file, row, slot in jobs]


def _write_if_read(file: ImageFile | ValueError, cut: Cut, window: np.ndarray, out: np.ndarray) -> None:
    if isinstance(file, ValueError):
        raise file
    write_square(file, cut, window, out)
