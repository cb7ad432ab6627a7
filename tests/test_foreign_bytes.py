"""Readers of foreign bytes, on files that are damaged at random and on ones that were: one line that names the file.

Nothing else may come of them: no other exception, no crash, no memory beyond twice the file and 200 MB.
"""

import contextlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from image_files import jpeg, scene
from memory import begin_peak, peak
from PIL import EpsImagePlugin, Image
from safetensors.torch import save

from fastcondense.data import datasets
from fastcondense.data.array_files import read_mat
from fastcondense.data.jobs import Job
from fastcondense.files import read_json
from fastcondense.labels.fkd_files import read_batch
from fastcondense.loaders.beton import Sidecar
from fastcondense.loaders.class_folders import EXTENSIONS, is_read
from fastcondense.loaders.complete import fault
from fastcondense.loaders.folder import FolderLoader, ImageFile, decode
from fastcondense.loaders.pack import Packing, pack
from fastcondense.loaders.packed import PackedLoader
from fastcondense.loaders.source import Centered, Faults
from fastcondense.log import read_events
from fastcondense.recipe.settings import Dataset
from fastcondense.sets import parquet_sets, tensor_sets
from fastcondense.sets.published_sets import read_published
from fastcondense.sets.stored_images import find_images
from fastcondense.teachers.teacher import state_dict
from fastcondense.tensor_files import read_checkpoint, write_tensors

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(6) % 3


# --- files, whole ----------------------------------------------------------------------------------------------------


def npz(compressed):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, images=IMAGES, labels=LABELS, classes=["a", "b", "c"])
    return file.getvalue()


def mat(compressed):
    file, images = io.BytesIO(), np.random.default_rng(1).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    scipy.io.savemat(file, {"X": images, "y": np.array([[1], [10], [3], [4]])}, do_compression=compressed)
    return file.getvalue()


def saved(content, is_zip=True):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=is_zip)
    return file.getvalue()


def fkd():
    coords = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.25, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]])
    fields = coords, torch.tensor([True, False, True]), torch.tensor([1, 2, 0]), np.float64(0.5), [0, 0, 4, 4]
    return saved([*fields, torch.ones(3, 4).half()])


def png():
    file = io.BytesIO()
    scene(20, 17, 0).save(file, "PNG")
    return file.getvalue()


def shard():
    job = Job(0, 0, 2, 0, 3)
    tensors = {"images": torch.from_numpy(IMAGES).permute(0, 3, 1, 2), "classes": job.classes(), "slots": job.slots()}
    with tempfile.TemporaryDirectory() as folder:
        write_tensors(Path(folder) / "x", tensors, {})
        return (Path(folder) / "x").read_bytes()


def parquet():
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    writer.write_table(arrow.table({"image": [png()] * 5, "label": [0, 1, 2, 0, 1]}), file)
    return file.getvalue()


def beton():
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{k}.JPEG" for k in range(5)]
        for k, path in enumerate(files):
            path.write_bytes(jpeg(scene(20, 15 + k, k)))
        out = Path(folder) / "x.beton"
        pack(files, np.arange(5) % 2, ("a", "b"), out, Packing(), source=Path(folder))
        return out.read_bytes(), Sidecar.path(out).read_bytes()


# --- readers ---------------------------------------------------------------------------------------------------------


def read_all(listing):
    return list(listing.read(np.arange(len(listing.labels))))


def read_tensor_set(path):
    return read_all(tensor_sets.list_tensors([path], 3, Dataset()))


def read_shard(path):
    return find_images(path.parent, [Job(0, 0, 2, 0, 3)], 3, 2).read()


def read_images(path):
    loader = PackedLoader(path)
    return [loader.read(sample).pixels() for sample in range(len(loader))]


def read_weights(path):
    return state_dict(read_checkpoint(path), path)


def read_digits(path):
    return datasets._mat(path, tuple("0123456789"))


def read_log(path):
    return list(read_events(path, ("say",)))


PAIR = (torch.from_numpy(IMAGES).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(LABELS))
READERS = {
    "npz": (lambda: npz(False), datasets._npz, "x.npz"),
    "npz, compressed": (lambda: npz(True), datasets._npz, "x.npz"),
    "mat": (lambda: mat(False), read_digits, "x.mat"),
    "mat, compressed": (lambda: mat(True), read_digits, "x.mat"),
    "CIFAR": (lambda: pickle.dumps({"data": IMAGES, "labels": [1, 2]}, 2), datasets._unpickle, "data_batch_1"),
    "pt": (
        lambda: saved({"conv.weight": torch.ones(3, 2)}),
        lambda path: state_dict(read_checkpoint(path), path),
        "x.pt",
    ),
    "old pt": (lambda: saved({"a": torch.ones(3), "b": np.arange(4)}, False), read_checkpoint, "x.pt"),
    "tensors": (lambda: saved(PAIR), read_tensor_set, "x.pt"),
    "safetensors": (
        lambda: save({"images": PAIR[0].contiguous(), "labels": PAIR[1]}),
        read_tensor_set,
        "x.safetensors",
    ),
    "shard": (shard, read_shard, "shard-00000.safetensors"),
    "FKD": (fkd, lambda path: read_batch(path, 8), "batch_0.tar"),
    "parquet": (parquet, lambda path: read_all(parquet_sets.list_rows([path], 0)), "x.parquet"),
    "PNG": (png, decode, "x.png"),
    "JPEG": (lambda: jpeg(scene(20, 17, 0)), lambda path: ImageFile.read(path).pixels(), "x.jpg"),
    "beton": (lambda: beton()[0], read_images, "x.beton"),
    "sidecar": (lambda: beton()[1], lambda path: read_images(path.with_suffix("")), "x.beton.json"),
    "JSON": (lambda: json.dumps({"a": [1, {"b": None}], "c": "x" * 40}).encode(), read_json, "x.json"),
    "log": (
        lambda: b'{"time": 1.5, "event": "job"}\n' * 3,
        lambda path: list(read_events(path, ("job",))),
        "log.jsonl",
    ),
}
WORDS = (0, 1, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFFFFFF, 1 << 62)
EDIT = st.tuples(
    st.sampled_from(["flip", "flip", "word", "word", "zeros", "drop", "double", "cut"]),
    st.integers(0, (1 << 16) - 1),
    st.integers(0, 255),
    st.sampled_from(WORDS),
)


def edited(data, edits):
    """The bytes after some damages: (kind, place as a share of 2^16, an amount, a number)."""
    for kind, share, amount, word in edits:
        at = share * len(data) >> 16
        if kind == "flip":
            data = data[:at] + bytes([(data[at] if data else 0) ^ (amount or 1)]) + data[at + 1 :]
        elif kind == "word":
            width = 8 if word >> 32 else 4
            data = data[:at] + word.to_bytes(width, ("little", "big")[amount % 2]) + data[at + width :]
        elif kind == "zeros":
            data = data[:at] + bytes(amount) + data[at + amount :]
        elif kind == "drop":
            data = data[:at] + data[at + amount :]
        elif kind == "double":
            data = data[: at + amount] + data[at:]
        else:
            data = data[:at]
    return data


def repacked(data, edits):
    """A zip file whose members are damaged, each with the right CRC; of anything else the bytes themselves."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return edited(data, edits)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as made:
        for number, entry in enumerate(archive.infolist()):
            content = archive.read(entry)
            mine = [edit for k, edit in enumerate(edits) if k % 2 == number % 2]
            made.writestr(entry.filename, edited(content, mine), entry.compress_type)
    return out.getvalue()


def check(read, path, size):
    held = begin_peak()
    try:
        read(path)
    except ValueError as error:
        text = str(error)
        assert (
            any(name in text for name in (path.name.removesuffix(".json"), f"{path.parent} "))
            and "\n" not in text
            and len(text) < 1000
        ), text
    assert peak() - held < 200e6 + 2 * size


@pytest.mark.parametrize("name", READERS)
def test_damage_at_random_is_one_line_that_names_the_file(tmp_path, name):
    make, read, file = READERS[name]
    whole = make()
    path = tmp_path / file
    if name in ("beton", "sidecar"):
        (tmp_path / "x.beton").write_bytes(beton()[0])
        (tmp_path / "x.beton.json").write_bytes(beton()[1])
    path.write_bytes(whole)
    read(path)  # it is read while it is whole

    @settings(
        max_examples=60,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(EDIT, min_size=1, max_size=4), st.booleans())
    def damage(edits, is_inside):
        data = (repacked if is_inside else edited)(whole, edits)
        path.write_bytes(data)
        check(read, path, len(data))

    damage()


@pytest.mark.parametrize("name", READERS)
def test_generated_bytes_are_one_line_that_names_the_file(tmp_path, name):
    make, read, file = READERS[name]
    whole, path = make(), tmp_path / file
    if name in ("beton", "sidecar"):
        (tmp_path / "x.beton").write_bytes(beton()[0])
        (tmp_path / "x.beton.json").write_bytes(beton()[1])

    @settings(max_examples=25, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
    @given(st.integers(0, 140), st.binary(max_size=200))
    def generated(kept, data):
        path.write_bytes(whole[:kept] + data)
        check(read, path, kept + len(data))

    generated()


# --- cases that were found, or are made up to hurt -------------------------------------------------------------------


class Forged:
    """Calls numpy's own constructors with a state of the file's choice."""

    def __init__(self, function, arguments, state):
        self.parts = function, arguments, state

    def __reduce__(self):
        return self.parts


def forged_dtype():
    """One with a field of objects at an offset of its choice, by which numpy follows the bytes as pointers."""
    rebuild, arguments, state = np.zeros(2).__reduce__()
    kind = Forged(np.dtype, ("V8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 27))
    return Forged(rebuild, arguments, (state[0], (1,), kind, False, b"\x41" * 8))


def forged_shape():
    rebuild, arguments, state = np.arange(2).__reduce__()
    return Forged(rebuild, arguments, (state[0], (1 << 40,), *state[2:]))


def with_pickle(content):
    """A file of torch.save whose pickle is another."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved({"a": 1}))) as archive, zipfile.ZipFile(out, "w") as made:
        for entry in archive.infolist():
            is_pickle = entry.filename.endswith("data.pkl")
            made.writestr(entry.filename, content if is_pickle else archive.read(entry))
    return out.getvalue()


def compressed(data):
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for entry in archive.infolist():
            made.writestr(entry.filename, archive.read(entry))
    return out.getvalue()


def wrong_sum():
    """A compressed matrix whose checksum, its last four bytes, is another's."""
    whole = mat(True)
    size = int(np.frombuffer(whole, "<u4", 1, 132)[0])
    return whole[: 136 + size - 1] + bytes([whole[136 + size - 1] ^ 1]) + whole[136 + size :]


def large_npz():
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made,
        made.open("images.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(160):
            member.write(bytes(1_000_000))
    return file.getvalue()


def large_mat():
    """An element that claims little and inflates to 300 MB."""
    packer = zlib.compressobj(1)
    matrix = np.array([6, 8, 6, 0, 5, 8, 1, 300_000_000, (1 << 16) | 1, ord("X"), 2, 300_000_000], "<u4").tobytes()
    content = packer.compress(np.array([14, 300_000_048], "<u4").tobytes() + matrix)
    for _ in range(120):
        content += packer.compress(bytes(1_000_000))
    content += packer.flush()
    return mat(False)[:128] + np.array([15, len(content)], "<u4").tobytes() + content


NESTED = b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"K\x01s."  # hashing it overflows the stack of C
FOUND = {
    "an array with a dtype of the file's choice": ("CIFAR", lambda: pickle.dumps({"data": forged_dtype()}, 2)),
    "an array larger than its bytes": ("CIFAR", lambda: pickle.dumps({"data": forged_shape()}, 2)),
    "tuples in tuples": ("CIFAR", lambda: NESTED),
    "tuples in tuples, by torch": ("pt", lambda: with_pickle(NESTED)),
    "tuples in tuples, old": ("old pt", lambda: NESTED),
    "a memo of 64 GB": ("CIFAR", lambda: b"\x80\x02}r\xff\xff\xff\xff."),
    "a function that is changed": ("CIFAR", lambda: b"\x80\x02c_codecs\nencode\nN}U\x0c__defaults__)s\x86b."),
    "a tensor of a trillion numbers in four bytes": ("tensors", lambda: saved(torch.zeros(1).expand(10**6, 3, 8, 8))),
    "a compressed checkpoint": ("pt", lambda: compressed(saved(torch.zeros(10_000_000)))),
    "an archive without a pickle": ("pt", lambda: with_pickle(b"")),
    "names that are no text": ("pt", lambda: saved({1: torch.ones(1)})),
    "a class of 2^62": ("tensors", lambda: saved((PAIR[0], torch.tensor([0, 1, 2, 0, 1, 1 << 62])))),
    "an array that inflates": ("npz", large_npz),
    "a matrix that inflates": ("mat", large_mat),
    "a matrix with another's checksum": ("mat", wrong_sum),
    "FKD of whole numbers": ("FKD", lambda: saved([torch.ones(2, 4), torch.ones(2), None, None, None, 7])),
    "deep JSON": ("JSON", lambda: b"[" * 200_000),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(tmp_path, name):
    reader, make = FOUND[name]
    _, read, file = READERS[reader]
    data = make()
    (tmp_path / file).write_bytes(data)
    with pytest.raises(ValueError):
        read(tmp_path / file)
    check(read, tmp_path / file, len(data))


def test_a_matlab_file_is_read_as_scipy_reads_it(tmp_path):
    for kind in ("u1", "<i2", "<f4", "<f8", "<i8"):
        arrays = {"X": (np.arange(24).reshape(2, 3, 4) * 5).astype(kind), "long_name_of_one": np.array([[7.0]])}
        for is_compressed in (False, True):
            scipy.io.savemat(tmp_path / "x.mat", arrays, do_compression=is_compressed)
            found, wanted = read_mat(tmp_path / "x.mat", list(arrays)), scipy.io.loadmat(tmp_path / "x.mat")
            for name in arrays:
                np.testing.assert_array_equal(found[name], wanted[name])
                assert found[name].dtype == wanted[name].dtype
    scipy.io.savemat(tmp_path / "x.mat", {"X": np.arange(4), "s": {"a": 1}, "c": np.array([[1 + 2j]])})
    assert list(read_mat(tmp_path / "x.mat", ["X", "y"])) == ["X"]
    with pytest.raises(ValueError, match=r"x\.mat cannot be read: c is no array of real numbers"):
        read_mat(tmp_path / "x.mat", ["c"])


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_a_device_and_a_folder_are_not_opened(tmp_path, name):
    _, read, file = READERS[name]
    path = tmp_path / file
    if name == "beton":
        (tmp_path / "x.beton.json").write_bytes(beton()[1])
    if name == "sidecar":
        (tmp_path / "x.beton").write_bytes(beton()[0])
    for make in (lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero"), lambda: path.symlink_to(tmp_path)):
        make()
        if name == "log":  # which never stops anything
            assert read(path) == []
        else:
            with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
                read(path)
        path.unlink()


def test_a_pipe_among_images_is_left_out_and_named(tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(png())
    (tmp_path / "1.png").unlink()
    os.mkfifo(tmp_path / "1.png")
    files, faults = sorted(tmp_path.iterdir()), Faults("skip")
    batches = FolderLoader(files, 0).batches([np.arange(3)], Centered(8, 8), faults)
    assert [ids.tolist() for _, ids in batches] == [[0, 2]]
    assert list(faults.skipped) == [1] and "1.png is a pipe, not a file" in faults.skipped[1]
    assert fault(files[1]) == f"{files[1]} is a pipe, not a file"


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(ran) (w) file closefile\nshowpage\n"


def test_no_program_is_started_for_an_image(tmp_path, monkeypatch):
    """Pillow hands PostScript, whatever the file is called, to Ghostscript."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("started"))
    (tmp_path / "x.png").write_bytes(POSTSCRIPT)
    for read in (decode, lambda path: ImageFile.of(path, path.read_bytes()).decode()):
        with pytest.raises(ValueError, match=r"x\.png is not an image"):
            read(tmp_path / "x.png")
    assert fault(tmp_path / "x.png") == f"{tmp_path / 'x.png'} is not an image"


def test_every_kind_of_image_that_is_listed_is_read(tmp_path):
    for ending in sorted(EXTENSIONS):
        if is_read(ending):
            path = tmp_path / f"x{ending}"
            picture = Image.new("L" if ending in (".pgm", ".pbm") else "RGB", (8, 8), "white")
            picture.save(path, {".apng": "PNG", ".pnm": "PPM", ".jpe": "JPEG"}.get(ending))
            assert decode(path).size == (8, 8), ending


# --- memory of large files -------------------------------------------------------------------------------------------

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


def test_images_that_are_large_for_their_bytes_are_not_decoded(tmp_path, monkeypatch):
    file = io.BytesIO()
    Image.new("RGB", (7000, 7000)).save(file, "PNG")
    (tmp_path / "a").mkdir()
    for k in range(3):
        (tmp_path / "a" / f"{k}.png").write_bytes(file.getvalue())
    monkeypatch.setattr(ImageFile, "decode", lambda _: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"0\.png has 7000 x 7000 pixels, but dataset\.image_size is 32"):
        read_published(tmp_path, ("a",), 3, Dataset(image_size=32))
