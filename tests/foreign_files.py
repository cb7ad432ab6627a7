"""Files of others, small and whole, their readers, and damages at random: what tests of foreign bytes share."""

import io
import json
import pickle
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import strategies as st
from image_files import jpeg, scene
from memory import begin_peak, peak
from safetensors.torch import save

from fastcondense.data import datasets
from fastcondense.data.jobs import Job
from fastcondense.files import read_json
from fastcondense.labels.fkd_files import read_batch
from fastcondense.labels.label_rows import array_shapes
from fastcondense.labels.stored_labels import StoredLabels, stored_digest
from fastcondense.labels.view_tables import Span
from fastcondense.loaders.beton import Sidecar
from fastcondense.loaders.folder import ImageFile, decode
from fastcondense.loaders.pack import Packing, pack
from fastcondense.loaders.packed import PackedLoader
from fastcondense.log import read_events
from fastcondense.recipe.settings import Dataset
from fastcondense.sets import parquet_sets, tensor_sets
from fastcondense.sets.stored_images import find_images
from fastcondense.teachers.weights import state_dict
from fastcondense.tensor_files import read_checkpoint, write_tensors

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(6) % 3


# --- files, whole ----------------------------------------------------------------------------------------------------


def npz(compressed):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, images=IMAGES, labels=LABELS, classes=["a", "b", "c"])
    return file.getvalue()


def npz_set():
    file, soft = io.BytesIO(), np.eye(3, dtype=np.float32)[LABELS] - np.float32(1 / 3)
    np.savez_compressed(file, images=IMAGES.astype(np.float32) / 255, labels=soft)
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


LABELLED = {"seed": 0, "classes": ["a", "b", "c"], "labels": {"top_k": 2}}


def stored_labels():
    """The files of two epochs of four views."""
    draw, shapes = np.random.default_rng(2), array_shapes(8, 3, 2)
    arrays = {name: draw.integers(0, 3, shape).astype(kind) for name, (shape, kind) in shapes.items()}
    digests = [stored_digest(arrays, [0, 4, 8], epoch) for epoch in range(2)]
    manifest = {"format": 2, "replay": LABELLED, "first_rows": [0, 4, 8], "epochs_done": 2, "digests": digests}
    found = {"manifest.json": json.dumps(manifest).encode()}
    for name, array in arrays.items():
        file = io.BytesIO()
        np.save(file, array)
        found[f"{name}.npy"] = file.getvalue()
    return found


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


def read_digits(path):
    return datasets._mat(path, tuple("0123456789"))


def read_stored_labels(path):
    labels = StoredLabels(path.parent, LABELLED, 2, torch.device("cpu"))
    return [labels.logits(Span(epoch, 0, 4)) for epoch in range(2)]


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
    "set as npz": (npz_set, read_tensor_set, "set.npz"),
    "shard": (shard, read_shard, "shard-00000.safetensors"),
    "stored labels": (lambda: stored_labels()["logits.npy"], read_stored_labels, "logits.npy"),
    "labels' classes": (lambda: stored_labels()["classes.npy"], read_stored_labels, "classes.npy"),
    "labels' manifest": (lambda: stored_labels()["manifest.json"], read_stored_labels, "manifest.json"),
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
BESIDE = {
    "beton": lambda: {"x.beton.json": beton()[1]},
    "sidecar": lambda: {"x.beton": beton()[0]},
    "stored labels": lambda: stored_labels(),
    "labels' classes": lambda: stored_labels(),
    "labels' manifest": lambda: stored_labels(),
}
"""Files that a reader needs beside the one that is changed."""
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


def put(folder, name):
    """The bytes of the whole file that a reader reads, once what it needs beside is in the folder."""
    for other, content in BESIDE.get(name, dict)().items():
        (folder / other).write_bytes(content)
    return READERS[name][0]()


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
