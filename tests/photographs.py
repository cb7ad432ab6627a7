"""Image files for the tests of loaders: smooth and textured pictures, and every kind of odd or broken file."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

# landscape, portrait, square, thin, smaller than the target: width, height
SIZES = [(160, 120), (99, 150), (128, 128), (301, 64), (70, 47), (40, 33), (215, 171), (121, 97)]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Waves of several lengths with noise over them: smooth parts and texture, as in a photograph."""
    rng = np.random.default_rng((width, height, seed))
    y, x = np.mgrid[:height, :width]
    waves = np.zeros((height, width, 3))
    for length in (90, 40, 15, 6):
        phase = rng.uniform(0, 2 * np.pi, (2, 3))
        waves += np.sin(2 * np.pi * x[..., None] / length + phase[0]) * np.sin(
            2 * np.pi * y[..., None] / length + phase[1]
        )
    noise = rng.normal(0, 6, (height, width, 3))
    return Image.fromarray((128 + 30 * waves + noise).clip(0, 255).astype(np.uint8))


def write_jpegs(folder: Path, count: int) -> list[Path]:
    """JPEG files of different sizes, qualities and colour samplings."""
    files = []
    for k in range(count):
        files.append(folder / f"{k:03d}.JPEG")
        picture(*SIZES[k % len(SIZES)], k).save(
            files[-1], "JPEG", quality=(75, 92)[k % 2], subsampling=(2, 0, 1)[k % 3]
        )
    return files


def jpeg(image: Image.Image, **options: object) -> bytes:
    """The bytes of a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def odd_files() -> dict[str, bytes]:
    """Files that are not plain JPEG but are images, all named .JPEG, by kind."""
    image = picture(90, 60)
    png, exif = io.BytesIO(), Image.Exif()
    image.save(png, "PNG")
    exif[0x0112] = 6  # turn by 90 degrees to look at
    return {
        "cmyk": jpeg(image.convert("CMYK")),
        "grey": jpeg(image.convert("L")),
        "png": png.getvalue(),
        "turned": jpeg(image, exif=exif),
        "progressive": jpeg(image, progressive=True),
        "rgb": jpeg(image, keep_rgb=True),
        "trailing": jpeg(image) + b"\0\0padding",
    }


def broken_files() -> dict[str, bytes]:
    """Files that no loader can read, by kind."""
    whole = jpeg(picture(90, 60))
    return {
        "empty": b"",
        "text": b"<html>404 not found</html>",
        "truncated": whole[: len(whole) // 2],
        "header": whole[:100],
        "start": b"\xff\xd8\xff\xe0" + bytes(500),
    }
