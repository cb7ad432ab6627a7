"""The .beton file: FFCV's format, version 2, with one image and one label a sample, and a JSON sidecar.

Header, field descriptors, one row of metadata a sample, then pages of image bytes (no image crosses a page's end), then
one row (sample, place, length) an image. Written here with numpy alone, and read by any FFCV; the sidecar
``<name>.beton.json`` adds what FFCV's format has no place for: the order of the classes and where the images came from.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

JPEG, RAW = 0, 1
HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("samples", "<u8"), ("allocations", "<u8")],
    align=True,
)
FIELD = np.dtype([("kind", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", (1024,))], align=True)
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
SAMPLE = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)
ALLOCATION = np.dtype([("sample", "<u8"), ("place", "<u8"), ("length", "<u8")])
_FIELDS = {"image": 2, "label": 1}  # FFCV's numbers of RGBImageField and IntField
_VERSION = 2


@dataclass(frozen=True)
class Sidecar:
    """What `<name>.beton.json` holds."""

    classes: tuple[str, ...]
    """Label k of the .beton means classes[k]."""
    counts: tuple[int, ...]
    """Samples of each class."""
    source: str
    """Name of the folder that was packed."""
    files: int
    """Image files in it."""
    sha256: str
    """Of the settings and of every file's class, name and size, in order."""
    settings: dict[str, Any]
    length: int
    """Bytes of the .beton file."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Files that were left out, and why."""

    @staticmethod
    def path(beton: Path) -> Path:
        """Where the sidecar of a .beton file lies."""
        return beton.with_name(f"{beton.name}.json")

    def json(self) -> bytes:
        """The bytes of the file."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


@dataclass(frozen=True)
class Beton:
    """A .beton file's samples, without their pixels."""

    path: Path
    sidecar: Sidecar
    samples: np.ndarray
    """SAMPLE [N]."""
    lengths: np.ndarray
    """Bytes of every image, int64 [N]."""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return self.samples["label"].astype(np.int64)

    def stored(self, sample: int) -> bytes:
        """An image's bytes: a JPEG file, or height x width x 3 pixels."""
        with self.path.open("rb") as file:
            file.seek(int(self.samples["image"]["data_ptr"][sample]))
            return file.read(int(self.lengths[sample]))


def read_beton(path: Path) -> Beton:
    """Header, metadata and sidecar of a .beton file that `pack` wrote.

    Raises ValueError that names a file which is missing, truncated, of another layout, or not what its sidecar says.
    """
    sidecar = read_sidecar(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = np.frombuffer(file.read(HEADER.itemsize), dtype=HEADER)[0]
            fields = np.frombuffer(file.read(len(_FIELDS) * FIELD.itemsize), dtype=FIELD)
            if header["version"] != _VERSION or header["fields"] != len(_FIELDS) or (fields != _descriptors()).any():
                raise ValueError("it has other fields than one image and one label")
            samples = np.frombuffer(file.read(int(header["samples"]) * SAMPLE.itemsize), dtype=SAMPLE)
            file.seek(int(header["allocations"]))
            allocations = np.frombuffer(file.read(), dtype=ALLOCATION)
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is not a .beton file that can be read: {error}") from None
    if size != sidecar.length or not len(samples) == len(allocations) == header["samples"]:
        raise ValueError(
            f"{path} has {size} bytes where its sidecar names {sidecar.length}: truncated, or another file"
        )
    labels = samples["label"]
    if (np.bincount(labels, minlength=len(sidecar.counts)) != sidecar.counts).any():
        raise ValueError(f"{path} has other labels than {Sidecar.path(path)} says; which classes are they?")
    lengths = allocations["length"][np.argsort(allocations["sample"])].astype(np.int64)
    return Beton(path, sidecar, samples, lengths)


def read_sidecar(path: Path) -> Sidecar:
    """The sidecar of a .beton file. Raises ValueError that names what is missing or damaged."""
    place = Sidecar.path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if not place.is_file():
        raise ValueError(f"{path} has no {place.name}, which names its classes: make it with `fastcondense pack`")
    try:
        tree = json.loads(place.read_text())
        tree |= {key: tuple(tree[key]) for key in ("classes", "counts")}
        return Sidecar(**tree)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place} is damaged: {error}") from None


def _descriptors() -> np.ndarray:
    fields = np.zeros(len(_FIELDS), dtype=FIELD)
    for row, (name, kind) in zip(fields, _FIELDS.items(), strict=True):
        row["kind"] = kind
        row["name"][: len(name)] = np.frombuffer(name.encode(), dtype=np.uint8)
    return fields


def data_start(samples: int, page_size: int) -> int:
    """Where the first page begins if there may be so many samples."""
    before = HEADER.itemsize + len(_FIELDS) * FIELD.itemsize + samples * SAMPLE.itemsize
    return -(-before // page_size) * page_size


def place(at: int, length: int, page_size: int) -> int:
    """Where `length` bytes go if everything before `at` is taken: there, or at the next page's start."""
    return at if at % page_size + length <= page_size else -(-at // page_size) * page_size


def head(samples: np.ndarray, page_size: int, allocations: int) -> bytes:
    """What stands before the pages. allocations: the place of the table after them."""
    header = np.array([(_VERSION, len(_FIELDS), page_size, len(samples), allocations)], dtype=HEADER)
    return header.tobytes() + _descriptors().tobytes() + samples.tobytes()
