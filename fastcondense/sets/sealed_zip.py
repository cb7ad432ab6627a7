"""A zip file of stored members that ends with the sha256 of all of its bytes before that, as its comment.

Equal members give equal bytes, and any change of one of them is seen before a member is read. Sizes are checked before
anything is built that depends on them: what a file claims cannot take more memory than a few times its own bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..files import new_file
from ..loaders.reading import naming, open_file

_DATE = (1980, 1, 1, 0, 0, 0)
_SEAL = 64  # hexadecimal digits
_ENCRYPTED = 1  # of a member's flags
_SMALL_DIRECTORY = 8 << 20  # bytes; Python holds about 15 times as many


class SealedWriter:
    """Adds members to a sealed zip file."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive

    def put(self, name: str, data: bytes) -> None:
        entry = zipfile.ZipInfo(name, _DATE)
        entry.external_attr = 0o644 << 16
        self._archive.writestr(entry, data, zipfile.ZIP_STORED)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[SealedWriter]:
    """The file appears when it is complete, as with `new_file`."""
    with new_file(path) as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.comment = b"0" * _SEAL
            yield SealedWriter(archive)
        file.flush()
        with Path(file.name).open("rb") as written:
            size = os.fstat(written.fileno()).st_size
            seal = _digest(written, size)
        file.seek(size - _SEAL)
        file.write(seal.encode())


class SealedReader:
    """The members of a sealed zip file, each of which `read` gives; `seal`: the digest that the file ends with."""

    def __init__(self, archive: zipfile.ZipFile, path: Path, seal: str):
        self._archive, self.path, self.seal = archive, path, seal
        self.names = archive.namelist()

    def read(self, name: str) -> bytes:
        """Raises ValueError if there is no such member, or if it is damaged."""
        if name not in self._archive.NameToInfo:
            raise ValueError(f"{self.path} is not a bundle: it has no {name}")
        with naming(self.path, f"{{path}} is damaged: {name}: {{error}}"):
            return self._archive.read(name)


def is_sealed(path: Path) -> bool:
    """Whether the file ends with the digest of its other bytes."""
    with open_file(path) as file:
        return _is_sealed(file)


def _is_sealed(file: BinaryIO) -> bool:
    size = os.fstat(file.fileno()).st_size
    return size > _SEAL and _seal(file, size) == _digest(file, size)


@contextlib.contextmanager
def reading(path: Path, *, must_be_sealed: bool = True) -> Iterator[SealedReader]:
    """Raises ValueError for a file that is no zip, was changed after it was written, or has members of other kinds."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_file(path))  # once: what is looked at is what is read
        if must_be_sealed and not _is_sealed(file):
            raise ValueError(
                f"{path} was changed or damaged: its bytes have another sha256 than the one that it ends with"
            )
        size = os.fstat(file.fileno()).st_size
        with naming(path, "{path} cannot be read as a bundle: {error}"):
            _check_directory(file, size, path)
            archive = stack.enter_context(zipfile.ZipFile(file))
        held = 0
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
                raise ValueError(f"{path}: {entry.filename} is encrypted, or packed in a way that bundles are not")
            held += entry.compress_size
            if entry.compress_size != entry.file_size or held > size:
                raise ValueError(f"{path}: {entry.filename} claims more bytes than the file has")
        if len(archive.NameToInfo) < len(archive.infolist()):
            raise ValueError(f"{path} has two members of one name")
        yield SealedReader(archive, path, _seal(file, size))


def _check_directory(file: BinaryIO, size: int, path: Path) -> None:
    """Raises ValueError if the list of members, which is read as a whole, is long for the file."""
    file.seek(max(0, size - _SEAL - 22 - 76))
    tail = file.read().rjust(76 + 22 + _SEAL)
    large, record, seal = tail[:76], tail[76:98], tail[98:]
    is_large = large[56:60] == b"PK\6\7"  # zip64: the record of a large file, and where that is, stand before
    place = int.from_bytes(large[64:72], "little")
    if (
        record.rfind(b"PK\5\6") != 0
        or not set(seal) <= set(b"0123456789abcdef")
        or (is_large and (large[:4] != b"PK\6\6" or place != size - len(tail)))
    ):  # else another list of members than the one that is looked at here could be read
        raise ValueError(f"{path} is not a bundle: it does not end as one does")
    length = int.from_bytes(large[40:48] if is_large else record[12:16], "little")
    if length > _SMALL_DIRECTORY + size // 8:
        raise ValueError(f"{path}: its list of members has {length} bytes, too many for a file of {size}")


def read_seal(path: Path) -> str:
    """The digest that the file ends with."""
    with open_file(path) as file:
        return _seal(file, os.fstat(file.fileno()).st_size)


def _seal(file: BinaryIO, size: int) -> str:
    file.seek(max(0, size - _SEAL))
    return file.read(_SEAL).decode("ascii", "replace")


def _digest(file: BinaryIO, size: int) -> str:
    digest, left = hashlib.sha256(), size - _SEAL
    file.seek(0)
    while left > 0 and (part := file.read(min(left, 1 << 20))):
        digest.update(part)
        left -= len(part)
    return digest.hexdigest()


def is_bundle(path: Path) -> bool:
    """Whether the path is a zip file."""
    with contextlib.suppress(zipfile.BadZipFile):  # of several disks
        return path.is_file() and zipfile.is_zipfile(path)
    return False
