"""Images as they stand in the report: small, inside the page, still or moving."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..sets.condensed import CondensedSet
from ..words import one_line

THUMBNAIL = 88
"""Side of the largest thumbnails, in pixels."""
LOSSLESS = 32
"""Images of up to so many pixels a side are kept without loss, as a page shows each of their pixels."""
TILE, GAP, LINE = 128, 8, 20
"""Side of an enlarged image of the animation, and pixels between columns and of a line of text."""
_GREY = (125, 134, 148)  # it can be read on light and on dark pages
_QUALITY = 75
_MILLISECONDS, _LAST_MILLISECONDS = 300, 1800


def thumbnail(image: Tensor) -> str:
    """uint8 [3, S, S] -> a data URI."""
    return _uri([_picture(image.permute(1, 2, 0).numpy())], image.shape[-1])


def animation(
    frames: Sequence[Tensor], columns: int, names: Sequence[str], captions: Sequence[str]
) -> tuple[str, str, tuple[int, int]]:
    """Frames of the same images, uint8 [n, 3, s, s] each, as sheets: moving, the last one alone, and their size.

    Small images are enlarged without smoothing. The name of each image stands below it, the caption of each frame below
    all.
    """
    side = frames[0].shape[-1]
    pictures = [_labelled(frame, columns, names, text) for frame, text in zip(frames, captions, strict=True)]
    return _uri(pictures, side), _uri(pictures[-1:], side), pictures[0].size


def _labelled(frame: Tensor, columns: int, names: Sequence[str], caption: str) -> Image.Image:
    zoom = max(1, TILE // frame.shape[-1])
    large = frame.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    side, gap, rows = large.shape[-1], GAP, -(-len(large) // columns)
    size = columns * (side + gap) - gap, rows * (side + LINE) + LINE
    picture = Image.new("RGBA", size, (*_GREY, 0))
    draw, font = ImageDraw.Draw(picture), _font()
    for k, (pixels, name) in enumerate(zip(large.permute(0, 2, 3, 1).numpy(), names, strict=True)):
        left, top = k % columns * (side + gap), k // columns * (side + LINE)
        picture.paste(Image.fromarray(pixels), (left, top))
        name = one_line(name)  # letters alone can be drawn
        while name and font.getlength(name) > side:
            name = f"{name[:-2]}…" if len(name) > 2 else ""
        draw.text((left, top + side + 1), name, (*_GREY, 255), font)
    draw.text((0, rows * (side + LINE) + 1), caption, (*_GREY, 255), font)
    return picture


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    """The letters that matplotlib brings along."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", LINE - 6)


def write_grid(condensed: CondensedSet, path: Path, max_classes: int = 20, max_slots: int = 10) -> None:
    """A PNG with a row a class and a column a slot; small images are enlarged without smoothing."""
    images = condensed.corner(max_classes, max_slots)
    zoom = max(1, 64 // images.shape[-1])
    large = images.flatten(0, 1).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    tiles = Image.fromarray(sheet(large, images.shape[1]))
    picture = Image.new("RGB", tiles.size, "white")
    picture.paste(tiles, mask=tiles)
    picture.save(path)


def sheet(images: Tensor, columns: int) -> np.ndarray:
    """Images uint8 [n, 3, s, s] in rows of so many: uint8 [height, width, 4], transparent between the images."""
    count, _, side, _ = images.shape
    gap = max(1, side // 16)
    rows, step = -(-count // columns), side + gap
    grid = np.zeros((rows * step - gap, columns * step - gap, 4), dtype=np.uint8)
    for k, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = k // columns * step, k % columns * step
        grid[top : top + side, left : left + side, :3] = image
        grid[top : top + side, left : left + side, 3] = 255
    return grid


def _picture(pixels: np.ndarray) -> Image.Image:
    picture = Image.fromarray(pixels)
    if picture.width > THUMBNAIL:
        picture = picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return picture


def _uri(pictures: Sequence[Image.Image], side: int) -> str:
    """WebP, of images that were `side` pixels wide."""
    first, *others = pictures
    file = io.BytesIO()
    settings: dict[str, Any] = {"lossless": True} if side <= LOSSLESS else {"quality": _QUALITY}
    if others:
        durations = [_MILLISECONDS] * len(others) + [_LAST_MILLISECONDS]
        settings |= {"save_all": True, "append_images": others, "duration": durations, "loop": 0}
    first.save(file, "WEBP", method=4, **settings)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
