"""Images of one folder a class, decoded by Pillow: the dependency-light loader, and the truth for tests of others."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"))
Cut = Callable[[int, Image.Image], Image.Image]  # (sample id, decoded image) -> the square that is wanted


def index_folder(root: Path) -> tuple[list[Path], np.ndarray, tuple[str, ...]]:
    """Files (sorted within their class), labels int64 [N] and class names (sorted) of root/<class>/**/<image>.

    Raises ValueError if root is missing, holds no class folder, or a class holds no image.
    """
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}")
    folders = sorted((path for path in root.iterdir() if path.is_dir()), key=lambda path: path.name)
    if not folders:
        raise ValueError(f"{root} holds no class folders; expected {root}/<class>/<image>")
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
        if not found:
            raise ValueError(f"class folder {folder} holds no image")
        files += found
        labels += [label] * len(found)
    return files, np.array(labels, dtype=np.int64), tuple(folder.name for folder in folders)


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
        """Raises ValueError that names a file which is missing, empty or not an image."""
        with _naming(path):
            data = path.read_bytes()
            return ImageFile(path, data, Image.open(io.BytesIO(data)))

    def decode(self) -> Image.Image:
        """The image in RGB, as it is stored: not turned by its EXIF orientation. Raises ValueError that names it."""
        with _naming(self.path):
            return self.header.convert("RGB")


class _naming:
    """Turns what Pillow raises into a ValueError of one line that names the file."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, UnidentifiedImageError):
            raise ValueError(f"{self.path} is not an image") from None
        # SyntaxError: some broken PNG files
        if isinstance(error, OSError | SyntaxError | Image.DecompressionBombError):
            raise ValueError(f"{self.path} cannot be read: {error}") from None


def decode(path: Path) -> Image.Image:
    """The image in RGB. Raises ValueError that names a file which is missing, truncated or not an image."""
    return ImageFile.read(path).decode()


def cut_window(image: Image.Image, window: Sequence[int], size: int) -> Image.Image:
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
    """Where the central `size` of `have` pixels begin; negative if there are fewer. As torchvision's CenterCrop."""
    # torchvision rounds a cut to even, and pads the smaller half first where the image is too small
    return round((have - size) / 2) if have >= size else -((size - have) // 2)


def cut_center(image: Image.Image, resize: int, size: int) -> Image.Image:
    """Short side to `resize`, then the central size x size square, as torchvision's Resize and CenterCrop."""
    height, width = resized(image.height, image.width, resize)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    top, left = central(height, size), central(width, size)
    return image.crop((left, top, left + size, top + size))


class _Squares(Dataset):
    def __init__(self, files: Sequence[Path], cut: Cut):
        self.files, self.cut = files, cut

    def __getitem__(self, sample: int) -> tuple[torch.Tensor | str, int]:
        try:  # a worker's exception would reach the user wrapped in a traceback: pass its words on instead
            square = self.cut(sample, decode(self.files[sample]))
        except ValueError as error:
            return str(error), sample
        return torch.from_numpy(np.array(square)).permute(2, 0, 1), sample


def _collate(samples: list[tuple[torch.Tensor | str, int]]) -> tuple[torch.Tensor | str, torch.Tensor]:
    squares, ids = zip(*samples, strict=True)
    wrong = [square for square in squares if isinstance(square, str)]
    return wrong[0] if wrong else torch.stack(squares), torch.tensor(ids)


def folder_batches(
    files: Sequence[Path], batches: Sequence[np.ndarray], cut: Cut, workers: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """uint8 [B, 3, S, S] and sample ids int64 [B] for every array of sample ids in `batches`, in that order.

    Raises ValueError that names a file which cannot be read.
    """
    loader = DataLoader(
        _Squares(files, cut),
        batch_sampler=[[int(sample) for sample in batch] for batch in batches],
        num_workers=min(workers, len(batches)),
        collate_fn=_collate,
    )
    for squares, batch_ids in loader:
        if isinstance(squares, str):
            raise ValueError(squares)
        yield squares, batch_ids
