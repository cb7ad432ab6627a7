"""The .beton file: FFCV's format, version 2, with one image and one label a sample, and a JSON sidecar.

Header, field descriptors, one row of metadata a sample, then pages of image bytes (no image crosses a page's end), the
CRC-32 of every image's bytes, which FFCV does not look at, and one row (sample, place, length) an image. Written here
with numpy alone, and read by any FFCV; the sidecar ``<name>.beton.json`` adds what FFCV's format has no place for: the
order of the classes, where the images came from, and a digest of itself and of all but the pages.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .reading import check_values, count_values, naming, open_file, read_file, reading

JPEG, RAW = 0, 1
HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("samples", "<u8"), ("allocations", "<u8")],
    align=True,
)
FIELD = np.dtype([("kind", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", (1024,))], align=True)
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
SAMPLE = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)
ALLOCATION = np.dtype([("sample", "<u8"), ("place", "<u8"), ("length", "<u8")])
CRC = np.dtype("<u4")
_FIELDS = {"image": 2, "label": 1}  # FFCV's numbers of RGBImageField and IntField
_VERSION = 2


@dataclass(frozen=True)
class Sidecar:
    """The content of `<name>.beton.json`."""

    classes: tuple[str, ...]
    """Label k of the .beton means classes[k]."""
    counts: tuple[int, ...]
    """Samples of each class."""
    source: str
    """Name of the folder that was packed."""
    files: int
    """Image files in it."""
    sha256: str
    """SHA-256 of the settings and of every file's class, name and size, in order."""
    settings: dict[str, Any]
    length: int
    """Bytes of the .beton file."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Files that were left out, and why."""
    digest: str = ""
    """SHA-256 of the other fields, and of the .beton file but for its pages."""

    def sealed(self, *index: bytes) -> Sidecar:
        """The sidecar with its digest; `index`: what stands before the pages, and after them."""
        digest = hashlib.sha256(replace(self, digest="").json())
        for part in index:
            digest.update(part)
        return replace(self, digest=digest.hexdigest())

    @staticmethod
    def path(beton: Path) -> Path:
        """The path of the sidecar of a .beton file."""
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
    crcs: np.ndarray
    """CRC-32 of these bytes, uint32 [N]."""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return self.samples["label"].astype(np.int64)

    def stored(self, sample: int) -> bytes:
        """An image's bytes: a JPEG file, or height x width x 3 pixels. Raises ValueError that names damaged ones."""
        with open_file(self.path) as file:
            file.seek(int(self.samples["image"]["data_ptr"][sample]))
            data = file.read(int(self.lengths[sample]))
        if zlib.crc32(data) != self.crcs[sample]:
            raise ValueError(f"{self.name_of(sample)}: its bytes are not those that were packed")
        return data

    def name_of(self, sample: int) -> str:
        """The name by which messages call an image."""
        return f"{self.path}: image {sample}, of class {self.sidecar.classes[self.samples['label'][sample]]}"


def read_beton(path: Path) -> Beton:
    """Header, metadata and sidecar of a .beton file that `pack` wrote.

    Raises ValueError that names a file which is missing, truncated, of another layout, or not what its sidecar says.
    """
    sidecar = read_sidecar(path)
    with reading(path, "{path} is not a .beton file that can be read: {error}"):
        size = path.stat().st_size
        if size != sidecar.length:
            raise ValueError(
                f"{path} has {size} bytes where its sidecar names {sidecar.length}: truncated, or another file"
            )
        with open_file(path) as file:
            start = file.read(HEADER.itemsize + len(_FIELDS) * FIELD.itemsize)
            header = np.frombuffer(start, HEADER, 1)[0]
            fields = np.frombuffer(start, FIELD, len(_FIELDS), HEADER.itemsize)
            if header["version"] != _VERSION or header["fields"] != len(_FIELDS) or (fields != _descriptors()).any():
                raise ValueError("it has other fields than one image and one label")
            count = int(header["samples"])
            end = int(header["allocations"]) - count * CRC.itemsize
            if end + count * (CRC.itemsize + ALLOCATION.itemsize) != size or len(start) + count * SAMPLE.itemsize > end:
                raise ValueError(f"it claims {count} images, which is not what it has room for")
            rows = file.read(count * SAMPLE.itemsize)
            file.seek(end)
            tail = file.read()
        samples, allocations = np.frombuffer(rows, SAMPLE), np.frombuffer(tail, ALLOCATION, count, count * CRC.itemsize)
        labels, counts = samples["label"], np.array(sidecar.counts)
        if (len(labels) and not 0 <= labels.min() <= labels.max() < len(counts)) or len(counts) != len(sidecar.classes):
            raise ValueError(f"it has labels beyond the {len(counts)} classes of {Sidecar.path(path).name}")
        if (np.bincount(labels, minlength=len(counts)) != counts).any():
            raise ValueError(f"{path} has other labels than {Sidecar.path(path)} says; which classes are they?")
        if sidecar.sealed(start, rows, tail) != sidecar:
            raise ValueError(f"its bytes, or those of {Sidecar.path(path).name}, are not those that were packed")
        lengths = allocations["length"][np.argsort(allocations["sample"])]
        _check_places(samples["image"], lengths, end)
        lengths = lengths.astype(np.int64)
        return Beton(path, sidecar, samples, lengths, np.frombuffer(tail, CRC, count))


def _check_places(images: np.ndarray, lengths: np.ndarray, end: int) -> None:
    """Raises ValueError for an image that is not before the byte `end`, or pixels of another number than its sides say.

    images: IMAGE [N]. lengths: uint64 [N].
    """
    begins, pixels = images["data_ptr"], 3 * images["width"].astype(np.uint64) * images["height"]
    is_wrong = (lengths > end) | (begins > end - np.minimum(lengths, end))
    is_wrong |= (images["mode"] == RAW) & (lengths != pixels)
    if is_wrong.any():
        raise ValueError(f"image {is_wrong.argmax()} is not where, or as large as, the file says")


def read_sidecar(path: Path) -> Sidecar:
    """The sidecar of a .beton file. Raises ValueError that names what is missing or damaged."""
    place = Sidecar.path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if not place.is_file():
        raise ValueError(f"{path} has no {place.name}, which names its classes: make it with `fastcondense pack`")
    with naming(place, "{path} is damaged, or of another version; pack again: {error}"):
        text = read_file(place)
        check_values(len(text), count_values(text))
        tree = json.loads(text)
        sidecar = Sidecar(**tree | {key: tuple(tree[key]) for key in ("classes", "counts")})
        if not all(isinstance(name, str) for name in (sidecar.digest, sidecar.sha256, *sidecar.classes)):
            raise ValueError("a name is no text")
        return sidecar


def _descriptors() -> np.ndarray:
    fields = np.zeros(len(_FIELDS), dtype=FIELD)
    for row, (name, kind) in zip(fields, _FIELDS.items(), strict=True):
        row["kind"] = kind
        row["name"][: len(name)] = np.frombuffer(name.encode(), dtype=np.uint8)
    return fields


def data_start(samples: int, page_size: int) -> int:
    """The byte at which the first page begins if there may be so many samples."""
    before = HEADER.itemsize + len(_FIELDS) * FIELD.itemsize + samples * SAMPLE.itemsize
    return -(-before // page_size) * page_size


def place(at: int, length: int, page_size: int) -> int:
    """The byte at which `length` bytes go if everything before `at` is taken: there, or at the next page's start."""
    return at if at % page_size + length <= page_size else -(-at // page_size) * page_size


def head(samples: np.ndarray, page_size: int, allocations: int) -> bytes:
    """The bytes that stand before the pages. allocations: the place of the table after them."""
    header = np.array([(_VERSION, len(_FIELDS), page_size, len(samples), allocations)], dtype=HEADER)
    return header.tobytes() + _descriptors().tobytes() + samples.tobytes()
