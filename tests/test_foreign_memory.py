"""Large files of others: reading them takes less memory than twice the file and 200 MB."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import check, png, read_all
from memory import begin_peak, peak
from PIL import Image
from safetensors.torch import save

from fastcondense.loaders.folder import ImageFile
from fastcondense.recipe.settings import Dataset
from fastcondense.sets import parquet_sets
from fastcondense.sets.published_sets import read_published

MEASURE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from memory import begin_peak, peak
from PIL import EpsImagePlugin, Image
from fastcondense.recipe.settings import Dataset
from fastcondense.sets import tensor_sets
held = begin_peak()
found = tensor_sets.list_tensors([Path(sys.argv[2])], 10, Dataset(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))
print(peak() - held, found.said[0])
"""


@pytest.mark.parametrize(("suffix", "scale"), [("safetensors", 1), ("pt", 4)])
def test_a_large_set_of_floats_is_read_by_parts(tmp_path, suffix, scale):
    images = (torch.rand(6000, 3, 64, 64) - (0 if scale == 1 else 0.5)) * scale
    path = tmp_path / f"x.{suffix}"
    if suffix == "pt":
        torch.save({"images": images, "labels": torch.arange(6000) // 600}, path)
    else:
        path.write_bytes(save({"images": images, "labels": torch.arange(6000) // 600}))
    del images
    command = [sys.executable, "-c", MEASURE, str(Path(__file__).parent), str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]).stdout
    size = path.stat().st_size
    path.unlink()
    assert ("taken as pixels in [0, 1]" if scale == 1 else "taken as normalised") in found
    assert int(found.split()[0]) < 200e6 + 2 * size and size > 290e6, found


def image_rows(path, images, labels, **how):
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    writer.write_table(arrow.table({"image": images, "label": labels}), path, **how)


def test_parquet_that_unfolds_is_refused_or_read_by_parts(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / "x.parquet"
    image_rows(
        path, arrow.array([bytes(50_000_000)] * 12, arrow.binary()), [0] * 12, compression="zstd", use_dictionary=False
    )
    with pytest.raises(ValueError, match=r"x\.parquet cannot be read: it claims to hold 600,000,\d\d\d bytes"):
        parquet_sets.list_rows([path], 1)
    large = np.random.default_rng(0).bytes(30_000_000)
    shared = arrow.DictionaryArray.from_arrays(
        arrow.array([0] * 300, arrow.int32()), arrow.array([large], arrow.binary())
    )
    image_rows(path, shared, [0] * 300, dictionary_pagesize_limit=1 << 30)
    size = path.stat().st_size
    assert size < 40_000_000
    check(lambda path: read_all(parquet_sets.list_rows([path], 1)), path, size)
    names = arrow.DictionaryArray.from_arrays(arrow.array([0] * 1000, arrow.int32()), arrow.array(["x" * 3_000_000]))
    image_rows(path, arrow.array([png()] * 1000, arrow.binary()), names)
    held = begin_peak()
    with contextlib.suppress(ValueError):
        assert len(parquet_sets.list_rows([path], 1).labels) == 1000
    assert peak() - held < 200e6 + 2 * path.stat().st_size


def varint(value, width=0):
    """A whole number from 0 on as Thrift writes it, in at least so many bytes."""
    value, out = value << 1, bytearray()
    while value > 127 or len(out) + 1 < width:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def test_pages_that_unfold_to_more_than_the_index_says_are_not_read(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    image_rows(
        path, arrow.array([bytes(50_000_000)] * 8, arrow.binary()), [0] * 8, compression="zstd", use_dictionary=False
    )
    content, group = path.read_bytes(), parquet.ParquetFile(path).metadata.row_group(0)
    for number in (group.column(0).total_uncompressed_size, group.total_byte_size):
        old = varint(number)
        assert content.count(old) == 1
        content = content.replace(old, varint(1000, len(old)))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.parquet cannot be read: its pages claim 400,\d+,\d+ bytes"):
        parquet_sets.list_rows([path], 1)
    check(lambda path: read_all(parquet_sets.list_rows([path], 1)), path, len(content))


def test_names_that_share_their_beginnings_do_not_unfold(tmp_path):
    """Arrow makes no dictionary of them, and nothing else is read."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path, kind = tmp_path / "x.parquet", {"use_dictionary": False, "column_encoding": {"label": "DELTA_BYTE_ARRAY"}}
    schema = arrow.schema([("image", arrow.binary()), ("label", arrow.string())])
    with parquet.ParquetWriter(path, schema, **kind) as writer:
        for first in range(0, 1500, 100):
            names = ["x" * 200_000 + str(first + k) for k in range(100)]
            writer.write_table(arrow.table({"image": [png()] * 100, "label": names}, schema=schema))
    with pytest.raises(ValueError, match=r"x\.parquet cannot be read: [^\n]*$"):
        parquet_sets.list_rows([path], 1)
    check(lambda path: parquet_sets.list_rows([path], 1), path, path.stat().st_size)


def test_images_that_are_large_for_their_bytes_are_not_decoded(tmp_path, monkeypatch):
    file = io.BytesIO()
    Image.new("RGB", (7000, 7000)).save(file, "PNG")
    (tmp_path / "a").mkdir()
    for k in range(3):
        (tmp_path / "a" / f"{k}.png").write_bytes(file.getvalue())
    monkeypatch.setattr(ImageFile, "decode", lambda _: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"0\.png has 7000 x 7000 pixels, but dataset\.image_size is 32"):
        read_published(tmp_path, ("a",), 3, Dataset(image_size=32))
