"""JPEG bytes to pixels by simplejpeg, where it is installed: Pillow's pixels to the bit, in less time.

Both call libjpeg-turbo with its accurate DCT and its smooth upsampling of colours. What simplejpeg complains about, and
all that is not an RGB or grey JPEG, is Pillow's.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None


@cache
def decoder() -> str:
    """The name and version of what decodes JPEG files here."""
    return f"simplejpeg {version('simplejpeg')}" if simplejpeg is not None else f"Pillow {version('pillow')}"


def decoded(data: bytes, header: Image.Image) -> np.ndarray | None:
    """uint8 [H, W, 3] of a file whose header Pillow has read; None if it is left to Pillow."""
    if simplejpeg is None or header.format != "JPEG" or header.mode not in ("RGB", "L"):
        return None
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:  # a warning of libjpeg's too: Pillow knows which are harmless
        return None
    return pixels if pixels.shape == (header.height, header.width, 3) else None
