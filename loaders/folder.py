"""Images of one folder a class, decoded by Pillow: the dependency-light loader, and the truth for tests of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

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


def decode(path: Path) -> Image.Image:
    """The image in RGB. Raises ValueError that names a file which is missing, truncated or not an image."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: some broken PNG files
        raise ValueError(f"{path} cannot be read: {error}") from None


def cut_window(image: Image.Image, window: Sequence[int], size: int) -> Image.Image:
    """Crop to the window (top, left, height, width, flip, roll_y, roll_x), resize to size x size, mirror, roll."""
    top, left, height, width, flip, roll_y, roll_x = (int(value) for value in window)
    square = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
    square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else square
    return ImageChops.offset(square, roll_x, roll_y)  # circular


def cut_center(image: Image.Image, resize: int, size: int) -> Image.Image:
    """Short side to `resize`, then the central size x size square, as torchvision's Resize and CenterCrop."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    other = int(resize * long / short)
    width, height = (resize, other) if width <= height else (other, resize)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    # torchvision rounds a cut to even, and pads the smaller half first where the image is too small
    top, left = (round((have - size) / 2) if have >= size else -((size - have) // 2) for have in (height, width))
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
