"""Images of a .beton file without FFCV: its stored JPEG files and pixels go the way of the folder loader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from .beton import RAW, read_beton
from .folder import FolderLoader, ImageFile
from .reading import naming


class PackedLoader(FolderLoader):
    """Images of a .beton file, decoded by `workers` threads; a Loader (source.py).

    rows: the .beton's samples that are samples 0, 1, ... here; all, if not given. Raises ValueError as `read_beton`.
    """

    def __init__(self, path: Path, rows: np.ndarray | None = None, workers: int = 0):
        super().__init__((), workers)
        self.beton = read_beton(path)
        self.rows = np.arange(len(self.beton)) if rows is None else np.asarray(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, sample: int) -> ImageFile:
        """Opens a sample. Raises ValueError that names what is damaged, or of another size than the file says."""
        row = int(self.rows[sample])
        image, name = self.beton.samples["image"][row], Path(self.beton.name_of(row))
        size = int(image["width"]), int(image["height"])
        with naming(name, f"{name}: {{error}}"):
            data = self.beton.stored(row)
            if image["mode"] == RAW:
                return ImageFile(name, data, Image.frombytes("RGB", size, data))
            file = ImageFile.of(name, data)
            if file.header.size != size:
                raise ValueError(f"it has {file.header.width} x {file.header.height} pixels, not {size[0]} x {size[1]}")
            return file
