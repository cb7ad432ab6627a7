"""CIFAR-10 and CIFAR-100 in every published form, read back to the very arrays; code and damage refused by name."""

import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

from fastcondense.data.datasets import load
from fastcondense.recipe.settings import Dataset

RNG = np.random.default_rng(7)
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
CIFAR100 = [f"fine_{k:02d}" for k in range(100)]
NAMES = {"cifar10": CIFAR10, "cifar100": CIFAR100}
FORMS = ("python2", "python3", "binary", "npz")


def make_arrays(name):
    """Training images and labels (five batches of two), test images and labels; every image differs."""
    num_classes = len(NAMES[name])
    images = RNG.integers(0, 256, (13, 32, 32, 3), dtype=np.uint8)
    labels = RNG.integers(0, num_classes, 13)
    labels[0], labels[12] = num_classes - 1, 0
    return images[:10], labels[:10], images[10:], labels[10:]


def planes(images):
    """Row by row as published: 1024 red, 1024 green, 1024 blue values."""
    return np.stack([np.concatenate([image[..., c].ravel() for c in range(3)]) for image in images])


def python2_pickle(value):
    """The stream that Python 2's cPickle writes at protocol 2, opcode by opcode: what the published archives hold."""

    multiarray = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
    uint8 = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"

    def encode(value):
        if isinstance(value, dict):
            return b"}(" + b"".join(encode(k) + encode(v) for k, v in value.items()) + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(encode, value)) + b"e"
        if isinstance(value, str):
            return b"T" + struct.pack("<i", len(value)) + value.encode("latin1")
        if isinstance(value, np.ndarray):
            rows, columns = value.shape
            shape = struct.pack("<cici", b"J", rows, b"J", columns) + b"\x86"
            data = b"\x89T" + struct.pack("<i", value.size) + value.tobytes()
            return multiarray + shape + uint8 + data + b"tb"
        return b"J" + struct.pack("<i", value)

    return b"\x80\x02" + encode(value) + b"."


def python3_pickle(value):
    return pickle.dumps(value, protocol=2)


def write_python(root, name, arrays, dump=python2_pickle):
    train_images, train_labels, test_images, test_labels = arrays
    label_key = "labels" if name == "cifar10" else "fine_labels"

    def batch(images, labels):
        labels = [int(label) for label in labels]
        return dump({label_key: labels, "data": planes(images), "filenames": [f"{k}.png" for k in labels]})

    if name == "cifar10":
        folder = root / "cifar-10-batches-py"
        folder.mkdir()
        for k in range(5):
            part = slice(2 * k, 2 * k + 2)
            (folder / f"data_batch_{k + 1}").write_bytes(batch(train_images[part], train_labels[part]))
        (folder / "test_batch").write_bytes(batch(test_images, test_labels))
        (folder / "batches.meta").write_bytes(dump({"num_cases_per_batch": 2, "label_names": CIFAR10, "num_vis": 3072}))
    else:
        folder = root / "cifar-100-python"
        folder.mkdir()
        (folder / "train").write_bytes(batch(train_images, train_labels))
        (folder / "test").write_bytes(batch(test_images, test_labels))
        (folder / "meta").write_bytes(dump({"fine_label_names": CIFAR100, "coarse_label_names": ["fish", "flowers"]}))
    return folder


def write_binary(root, name, arrays):
    train_images, train_labels, test_images, test_labels = arrays
    coarse = b"" if name == "cifar10" else b"\x13"

    def records(images, labels):
        rows = planes(images)
        return b"".join(
            coarse + struct.pack("B", label) + row.tobytes() for label, row in zip(labels, rows, strict=True)
        )

    folder = root / ("cifar-10-batches-bin" if name == "cifar10" else "cifar-100-binary")
    folder.mkdir()
    if name == "cifar10":
        for k in range(5):
            part = slice(2 * k, 2 * k + 2)
            (folder / f"data_batch_{k + 1}.bin").write_bytes(records(train_images[part], train_labels[part]))
        (folder / "test_batch.bin").write_bytes(records(test_images, test_labels))
        (folder / "batches.meta.txt").write_text("\n".join(CIFAR10) + "\n\n")
    else:
        (folder / "train.bin").write_bytes(records(train_images, train_labels))
        (folder / "test.bin").write_bytes(records(test_images, test_labels))
        (folder / "fine_label_names.txt").write_text("\n".join(CIFAR100) + "\n")
        (folder / "coarse_label_names.txt").write_text("fish\nflowers\n")
    return folder


def write_npz(root, name, arrays):
    train_images, train_labels, test_images, test_labels = arrays
    np.savez(root / "train.npz", images=train_images, labels=train_labels, classes=NAMES[name])
    np.savez(root / "test.npz", images=test_images, labels=test_labels)
    return root


def write_cifar(form, root, name, arrays):
    if form == "binary":
        return write_binary(root, name, arrays)
    if form == "npz":
        return write_npz(root, name, arrays)
    return write_python(root, name, arrays, python2_pickle if form == "python2" else python3_pickle)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
def test_every_form_of_cifar_gives_the_arrays_that_were_written(tmp_path, form, name):
    arrays = make_arrays(name)
    folder = write_cifar(form, tmp_path, name, arrays)
    for data in {tmp_path, folder}:  # the archive's folder, or the one that holds it
        real = load(Dataset(name=name), data)
        assert real.classes == tuple(NAMES[name])
        for split, images, labels in ((real.train, *arrays[:2]), (real.test, *arrays[2:])):
            np.testing.assert_array_equal(split.images, images)
            np.testing.assert_array_equal(split.labels, labels)
            assert split.images.dtype == np.uint8 and split.labels.dtype == np.int64


@pytest.mark.parametrize("name", NAMES)
def test_npz_without_class_names_takes_the_published_or_numbered_ones(tmp_path, name):
    images, labels, _, _ = make_arrays(name)
    for file in ("train.npz", "test.npz"):
        np.savez(tmp_path / file, images=images, labels=labels)
    classes = load(Dataset(name=name), tmp_path).classes
    assert classes == (tuple(CIFAR10) if name == "cifar10" else tuple(f"{k:03d}" for k in range(100)))


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("file", ["data_batch_3", "batches.meta"])
def test_a_pickle_with_code_runs_nothing_and_is_refused_by_name(tmp_path, file, protocol):
    folder = write_python(tmp_path, "cifar10", make_arrays("cifar10"))
    (folder / file).write_bytes(pickle.dumps({"labels": _Bomb(tmp_path / "ran")}, protocol=protocol))
    with pytest.raises(ValueError, match=rf"{file} .*{os.mkdir.__module__}\.mkdir.* refused"):
        load(Dataset(name="cifar10"), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_bomb_of_the_test_above_would_run_under_plain_pickle(tmp_path):
    pickle.loads(pickle.dumps({"labels": _Bomb(tmp_path / "ran")}))
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("attribute", ["builtins.eval", "numpy.load", "numpy.ndarray.dump"])
def test_numpy_and_builtins_are_not_a_way_around(tmp_path, attribute):
    module, _, function = attribute.rpartition(".")
    folder = write_python(tmp_path, "cifar10", make_arrays("cifar10"))
    (folder / "test_batch").write_bytes(f"c{module}\n{function}\n(S'1'\ntR.".encode())
    with pytest.raises(ValueError, match=rf"test_batch .*{attribute}.* refused"):
        load(Dataset(name="cifar10"), tmp_path)


def cut(file, lost):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-lost])


def written(file, content):
    return lambda folder: (folder / file).write_bytes(content)


def cut_two(folder):
    """Together they have lost a whole record."""
    cut("data_batch_1.bin", 1000)(folder)
    cut("data_batch_2.bin", 2073)(folder)


UNLABELLED = python2_pickle({"coarse_labels": [1], "data": np.zeros((1, 3072), np.uint8)})


@pytest.mark.parametrize(
    ("form", "name", "damage", "words"),
    [
        ("python2", "cifar10", written("data_batch_4", b""), "data_batch_4 is not a CIFAR batch"),
        ("python2", "cifar10", written("data_batch_4", b"not a pickle at all"), "data_batch_4 is not a CIFAR batch"),
        ("python2", "cifar10", cut("data_batch_4", 900), "data_batch_4 is not a CIFAR batch"),
        ("python2", "cifar10", lambda folder: (folder / "data_batch_2").unlink(), "data_batch_2 is missing"),
        ("python2", "cifar100", written("train", UNLABELLED), "cifar-100-python/train.*fine_labels"),
        ("binary", "cifar10", cut("data_batch_3.bin", 100), r"data_batch_3\.bin is truncated"),
        ("binary", "cifar100", cut("train.bin", 100), r"train\.bin is truncated"),
        ("binary", "cifar10", cut_two, r"data_batch_1\.bin is truncated"),
        ("npz", "cifar10", cut("test.npz", 2000), r"test\.npz"),
    ],
)
def test_a_damaged_or_missing_file_is_named(tmp_path, form, name, damage, words):
    damage(write_cifar(form, tmp_path, name, make_arrays(name)))
    with pytest.raises(ValueError, match=words):
        load(Dataset(name=name), tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("form", ["python2", "binary"])
def test_cifar10_and_cifar100_can_lie_side_by_side(tmp_path, form, name):
    arrays = {other: make_arrays(other) for other in NAMES}
    for other in NAMES:
        write_cifar(form, tmp_path, other, arrays[other])
    np.testing.assert_array_equal(load(Dataset(name=name), tmp_path).train.images, arrays[name][0])


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": np.zeros((2, 32, 32, 3)), "labels": np.zeros(2, int)},
        {"images": np.zeros((2, 3, 32, 32), np.uint8), "labels": np.zeros(2, int)},
        {"images": np.zeros((2, 32, 32, 3), np.uint8), "labels": np.zeros(3, int)},
        {"pixels": np.zeros((2, 32, 32, 3), np.uint8), "labels": np.zeros(2, int)},
        {"images": np.array([_Bomb("x")]), "labels": np.zeros(1, int)},
    ],
    ids=["float", "planes", "count", "key", "pickled"],
)
def test_npz_arrays_of_another_form_are_refused(tmp_path, arrays):
    write_npz(tmp_path, "cifar10", make_arrays("cifar10"))
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(ValueError, match=r"train\.npz (needs|must hold)"):
        load(Dataset(name="cifar10"), tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_labels_beyond_the_classes_are_refused(tmp_path, form):
    images, labels, test_images, test_labels = make_arrays("cifar10")
    test_labels[1] = 10
    folder = write_cifar(form, tmp_path, "cifar10", (images, labels, test_images, test_labels))
    with pytest.raises(ValueError, match=f"{folder}.*needs labels from 0 to 9, got 0 to 10"):
        load(Dataset(name="cifar10"), tmp_path)


def test_a_packed_archive_asks_to_be_unpacked(tmp_path):
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cifar-10-batches-py/readme.html"), io.BytesIO())
    with pytest.raises(ValueError, match=r"still packed: tar xzf cifar-10-python\.tar\.gz"):
        load(Dataset(name="cifar10"), tmp_path)


def test_a_folder_without_cifar_says_what_was_looked_for(tmp_path):
    (tmp_path / "readme.txt").touch()
    with pytest.raises(ValueError, match=r"holds no cifar100: .*train\.npz.*cifar-100-python.*cifar-100-binary"):
        load(Dataset(name="cifar100"), tmp_path)


@pytest.mark.parametrize("names", [5, None, [*range(10)], [["x"]] * 10, np.arange(10), {}, []])
def test_names_that_are_no_text_are_refused(tmp_path, names):
    write_python(tmp_path, "cifar10", make_arrays("cifar10"), python3_pickle)
    path = next(tmp_path.rglob("batches.meta"))
    path.write_bytes(pickle.dumps({"label_names": names}))
    with pytest.raises(ValueError, match=r"batches.meta has no label_names; is it really cifar10\?"):
        load(Dataset(name="cifar10", image_size=32, resize=32), tmp_path)


def test_names_that_are_bytes_are_text(tmp_path):
    write_python(tmp_path, "cifar10", make_arrays("cifar10"), python3_pickle)
    next(tmp_path.rglob("batches.meta")).write_bytes(pickle.dumps({"label_names": [name.encode() for name in CIFAR10]}))
    assert list(load(Dataset(name="cifar10", image_size=32, resize=32), tmp_path).classes) == CIFAR10
