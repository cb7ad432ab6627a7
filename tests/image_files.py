"""Folders of image files of every awkward kind, for the loaders' tests."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageChops

FROM_PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13
"""Whether Pillow resizes much of the height first; else tall windows differ from ours by one level."""


def scene(width: int, height: int, seed: int) -> Image.Image:
    """A smooth image with some noise, as JPEG likes them."""
    rng = np.random.default_rng((seed, width, height))
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height), 3)
    noisy = np.asarray(coarse).astype(int) + rng.integers(-12, 13, (height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options) -> bytes:
    """Its bytes as a JPEG file."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def png_file(width: int, height: int, rows: bytes = b"", bits: int = 8) -> bytes:
    """A PNG file that claims to be RGB of that size, whatever its rows are; Pillow cannot write one of 16 bits."""
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows) if rows else b"", b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


def good_files() -> dict[str, bytes]:
    """Files that every loader reads, by name; the odd ones among ordinary JPEG of many sizes."""
    files = {f"{k:02d}.JPEG": jpeg(scene(20 + 7 * k % 90, 25 + 13 * k % 80, k), quality=90) for k in range(20)}
    files["grey.JPEG"] = jpeg(scene(50, 40, 30).convert("L"))
    files["cmyk.JPEG"] = jpeg(scene(44, 52, 31).convert("CMYK"))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    files["turned.JPEG"] = jpeg(scene(60, 30, 32), exif=turned)
    files["progressive.JPEG"] = jpeg(scene(64, 48, 33), progressive=True, subsampling=0)
    stream = io.BytesIO()
    scene(33, 47, 34).save(stream, "PNG")
    files["png.JPEG"] = stream.getvalue()
    return files


def bad_files() -> dict[str, bytes]:
    """Files that no loader reads, by name."""
    whole = jpeg(scene(64, 64, 40))
    return {"empty.JPEG": b"", "text.JPEG": b"<html>404 not found</html>", "cut.JPEG": whole[: len(whole) // 2]}


def write_folder(root: Path, files: dict[str, bytes], classes: int = 2) -> Path:
    """root/class<k>/<name>, dealt out in turn."""
    for k, (name, data) in enumerate(files.items()):
        path = root / f"class{k % classes}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def cut_window(image: Image.Image, window: object, size: int) -> Image.Image:
    """What a window (top, left, height, width, flip, roll_y, roll_x) shows, by Pillow alone."""
    top, left, height, width, flip, roll_y, roll_x = (int(value) for value in window)
    square = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
    square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else square
    return ImageChops.offset(square, roll_x, roll_y)  # circular
