"""Image sets as Hugging Face's `datasets` keeps them: parquet files with an image and its class in a row."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..loaders.folder import ImageFile
from ..loaders.reading import reading
from .condensed import CondensedSet
from .encoded import encode
from .listing import Listing, Picture, decode, numbers_as_names
from .parquet_pages import check_pages
from .parts import in_order

_IMAGES = ("image", "img", "images", "jpg", "png", "webp")
_LABELS = ("label", "labels", "class", "target", "fine_label", "cls")
_SHARD_BYTES = 500_000_000
_ROWS = 100  # a row group, which readers fetch as one
_ROOM = 150_000_000  # bytes beyond twice the file
_SMALLEST_ROW = 32  # bytes: no image file is as small


def need(module: str) -> Any:
    """The module of an optional library. Raises ValueError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"parquet files need {module.split('.')[0]}: pip install 'fastcondense[hf]'") from None


# --- reading ---------------------------------------------------------------------------------------------------------


def find(path: Path) -> list[Path]:
    """The parquet files that are `path`, or in it, or in its data/; of several splits those of train.

    Raises ValueError if several are not numbered as parts of one set.
    """
    if path.is_file():
        return [path] if path.suffix.lower() == ".parquet" else []
    files = sorted(path.glob("*.parquet")) or sorted((path / "data").glob("*.parquet"))
    train = [file for file in files if re.match(r"train(ing)?(?![a-z])", file.name, re.IGNORECASE)]
    return in_order(train or files)


def list_rows(files: Sequence[Path], workers: int) -> Listing:
    """The rows of all files, one file after another. Raises ValueError for other columns than an image and its class.

    Images are encoded bytes, or {bytes, path}; classes are numbers, which a ClassLabel may name, or names.
    """
    opened = []
    for file in files:
        with reading(file):
            opened.append(_opened(file))
    schema = opened[0].schema_arrow
    image, label = (_column(schema.names, wanted, files[0]) for wanted in (_IMAGES, _LABELS))
    values: list[Any] = []
    for file, table in zip(files, opened, strict=True):
        if not table.schema_arrow.equals(schema):
            raise ValueError(f"{file} has other columns than {files[0]}")
        with reading(file):
            values += _values(file, label, schema.field(label).type)
    given = _class_label(schema, label)
    with reading(files[0]):
        names, labels = _classes(values, given, f"column {label!r} of {files[0]}")
    is_numbered = given is None and not isinstance(values[0], str)

    def read(ids: np.ndarray, size: int = 0) -> Iterator[Picture]:
        begin = 0
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for file, table in zip(files, opened, strict=True):
                for group in range(table.num_row_groups):
                    first, begin = begin, begin + table.metadata.row_group(group).num_rows
                    here = np.flatnonzero((ids >= first) & (ids < begin)).tolist()
                    places = {int(ids[place]): place for place in here}
                    for cells in _cells(file, table, group, image, first, places) if places else ():
                        yield from decode(list(cells), partial(_open, file, ids, cells), pool, size)

    layout = f"{len(files)} parquet file" + "s" * (len(files) > 1)
    return Listing(layout, names, labels, read, is_numbered=is_numbered)


def _opened(file: Path, *shared: str) -> Any:
    """The parquet file; of the columns `shared`, texts that are equal are kept once.

    Raises ValueError for one that claims to be many times what it is.
    """
    found, size = need("pyarrow.parquet").ParquetFile(file, read_dictionary=shared), file.stat().st_size
    if not found.metadata.num_rows:
        raise ValueError("it has no rows")
    if (claimed := found.metadata.num_rows) > 1000 + size // _SMALLEST_ROW:
        raise ValueError(f"it claims {claimed:,} rows, more than it has room for")
    if (claimed := _claimed(found.metadata)) > 2 * size + _ROOM:
        raise ValueError(f"it claims to hold {claimed:,} bytes, many more than it has")
    check_pages(file, found.metadata)
    return found


def _bytes(table: Any, group: int, column: str) -> int:
    """Bytes of a column in a row group, unfolded."""
    parts = map(table.metadata.row_group(group).column, range(table.metadata.num_columns))
    return sum(int(part.total_uncompressed_size) for part in parts if part.path_in_schema.split(".")[0] == column)


def _claimed(metadata: Any) -> int:
    groups, columns = range(metadata.num_row_groups), range(metadata.num_columns)
    return sum(int(metadata.row_group(group).column(k).total_uncompressed_size) for group in groups for k in columns)


def _values(file: Path, label: str, kind: Any) -> list[Any]:
    """The numbers or names in a column of that type; none if it is another."""
    arrow = need("pyarrow")
    kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
    if arrow.types.is_integer(kind):
        return list(_opened(file).read(columns=[label])[label].to_pylist())
    if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
        return []
    found: list[Any] = []
    for chunk in _opened(file, label).read(columns=[label])[label].chunks:
        names = chunk.dictionary.to_pylist()
        found += [None if place is None else names[place] for place in chunk.indices.to_pylist()]
    return found


def _cells(
    file: Path, table: Any, group: int, column: str, first: int, places: Mapping[int, int]
) -> Iterator[dict[int, Any]]:
    """Cells of the rows of a group, which begins with row `first`, by their places; a few rows are held at a time.

    A value that rows share is stored once, so that many of them may be much more than the file.
    """
    together = max(1, min(_ROWS, _ROOM // (1 + _bytes(table, group, column))))
    batches = table.iter_batches(together, row_groups=[group], columns=[column])
    while True:
        with reading(file):
            batch = next(batches, None)
        if batch is None:
            return
        rows = [row for row in range(first, first + len(batch)) if row in places]
        yield {places[row]: batch.column(0)[row - first].as_py() for row in rows}
        first += len(batch)


def _open(file: Path, ids: np.ndarray, cells: Mapping[int, Any], place: int) -> ImageFile:
    row, cell = int(ids[place]), cells[place]
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise ValueError(f"row {row} of {file} holds no image's bytes, but {cell!r:.60}")
    return ImageFile.of(Path(f"{file} row {row}"), data)


def _column(have: Sequence[str], wanted: Sequence[str], file: Path) -> str:
    found = next((name for name in wanted if name in have), None)
    if found is None:
        raise ValueError(f"{file} needs a column {wanted[0]!r}, but has {', '.join(have)}")
    return found


def _class_label(schema: Any, label: str) -> list[str] | None:
    """The names that a ClassLabel gives to numbers, from what `datasets` writes beside the schema."""
    try:
        tree = json.loads((schema.metadata or {})[b"huggingface"])
        return [str(name) for name in tree["info"]["features"][label]["names"]]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _classes(values: Sequence[Any], names: Sequence[str] | None, where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the classes and the class of each row, int64."""
    if values and all(isinstance(value, str) for value in values):
        names = sorted(set(values)) if names is None else names
        values = [names.index(value) if value in names else -1 for value in values]
    if not values or not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"{where} needs a class number or name in each row, none below 0")
    labels = np.array(values, dtype=np.int64)
    if names is None:
        names = numbers_as_names(int(labels.max()) + 1)
    if labels.max() >= len(names):
        raise ValueError(f"{where} has class {labels.max()}, but only {len(names)} classes are named")
    return tuple(names), labels


# --- writing ---------------------------------------------------------------------------------------------------------


def write_rows(condensed: CondensedSet, folder: Path, jpeg: int, shard_bytes: int = _SHARD_BYTES) -> list[Path]:
    """folder/data/train-<k>-of-<n>.parquet, which `datasets.load_dataset` reads: image, and label with class names.

    Rows are in class order, and in a class in slot order. Images are PNG, or JPEG of quality `jpeg` if that is not 0.
    Shards have at most `shard_bytes` of pixels.
    """
    datasets, parquet, arrow = need("datasets"), need("pyarrow.parquet"), need("pyarrow")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(condensed.classes)))
    num_images, ipc = condensed.num_images, condensed.ipc
    rows_a_shard = max(1, shard_bytes // math.prod(condensed.shape[2:]))
    count, paths = math.ceil(num_images / rows_a_shard), []
    (folder / "data").mkdir(parents=True)
    for shard in range(count):
        paths.append(folder / "data" / f"train-{shard:05d}-of-{count:05d}.parquet")
        with parquet.ParquetWriter(paths[-1], features.arrow_schema, compression="none") as writer:
            end = min((shard + 1) * rows_a_shard, num_images)
            for first in range(shard * rows_a_shard, end, _ROWS):
                rows = range(first, min(first + _ROWS, end))
                cells = [{"bytes": file.data, "path": file.name} for file in encode(condensed, rows, jpeg)]
                columns = {"image": cells, "label": [row // ipc for row in rows]}
                writer.write_table(arrow.table(columns, schema=features.arrow_schema))
    return paths
