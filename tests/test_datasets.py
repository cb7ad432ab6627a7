"""Data sets in their published layouts, read back to the very arrays that were written."""

import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fastcondense.data.datasets import RealData, Split, load
from fastcondense.data.splits import by_class
from fastcondense.recipe.settings import Dataset

RNG = np.random.default_rng(7)
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
CIFAR100 = [f"fine_{k:02d}" for k in range(100)]
NAMES = {"cifar10": CIFAR10, "cifar100": CIFAR100}
SVHN = (("train", 12), ("test", 11))
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


def write_image(path, size=(9, 7), colour=(10, 200, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def write_folders(root, counts, suffix=".jpg"):
    for folder, count in counts.items():
        for k in range(count):
            write_image(root / folder / f"{k:02d}{suffix}")


# --- CIFAR -----------------------------------------------------------------------------------------------------------


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


# --- image files -----------------------------------------------------------------------------------------------------


def write_tiny_imagenet(root):
    for wnid in ("n02", "n01", "n03"):
        write_folders(root / "train" / wnid, {"images": 2}, ".JPEG")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("00.JPEG\t0\t0\t9\t7\n")
    lines = []
    for k, wnid in enumerate(("n03", "n01", "n02", "n01")):
        write_image(root / "val" / "images" / f"val_{k}.JPEG")
        lines.append(f"val_{k}.JPEG\t{wnid}\t0\t0\t8\t6\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))


@pytest.mark.parametrize("inside", ["", "tiny-imagenet-200"])
def test_tiny_imagenet_takes_its_validation_labels_from_the_annotations(tmp_path, inside):
    write_tiny_imagenet(tmp_path / inside)
    real = load(Dataset(name="tiny-imagenet"), tmp_path)
    assert real.classes == ("n01", "n02", "n03")
    assert real.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [path.parts[-3] for path in real.train.files] == ["n01", "n01", "n02", "n02", "n03", "n03"]
    assert real.test.labels.tolist() == [2, 0, 1, 0]
    assert [path.name for path in real.test.files] == [f"val_{k}.JPEG" for k in range(4)]
    assert all(path.is_file() for path in real.train.files + real.test.files)


def test_tiny_imagenet_refuses_an_unknown_wnid_and_missing_annotations(tmp_path):
    write_tiny_imagenet(tmp_path)
    annotations = tmp_path / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text() + "val_9.JPEG\tn99\t0\t0\t1\t1\n")
    with pytest.raises(ValueError, match=r"val_annotations\.txt names class 'n99'"):
        load(Dataset(name="tiny-imagenet"), tmp_path)
    annotations.write_text("val_0.JPEG n01 0 0 1 1\n")
    with pytest.raises(ValueError, match=r"val_annotations\.txt"):
        load(Dataset(name="tiny-imagenet"), tmp_path)
    annotations.unlink()
    with pytest.raises(ValueError, match=r"val_annotations\.txt is missing"):
        load(Dataset(name="tiny-imagenet"), tmp_path)


@pytest.mark.parametrize("part", ["val", "test", "validation"])
def test_imagenets_layout_has_sorted_wnids_as_classes(tmp_path, part):
    write_folders(tmp_path / "train", {"n02": 3, "n01": 2, "n10": 1})
    write_folders(tmp_path / part, {"n10": 2, "n01": 1, "n02": 1})
    real = load(Dataset(name="folder"), tmp_path)
    assert real.classes == ("n01", "n02", "n10")
    assert real.train.labels.tolist() == [0, 0, 1, 1, 1, 2] and real.test.labels.tolist() == [0, 1, 2, 2]
    assert [path.parent.name for path in real.test.files] == ["n01", "n02", "n10", "n10"]
    assert all(path.parent.parent.name == "train" for path in real.train.files)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"train/a": 1, "train/b": 1, "val/a": 1, "val/b": 1, "val/c": 1}, "'c' is in one of them only"),
        ({"train/a": 1, "train/b": 1, "train/c": 1, "val/a": 1, "val/c": 1}, "'b' is in one of them only"),
        ({"train/a": 1, "train/b": 1, "val": 3}, "val holds images without class folders"),
        ({"train/a": 2, "train/b": 2}, "needs both train/ or training/ and one of val/"),
        ({"val/a": 2, "val/b": 2}, "needs both train/ or training/ and one of val/"),
        ({"a": 2, "lonely": 1}, "'lonely' has 1 image"),
        ({"a": 2, "hollow": 0}, "hollow holds no image"),
    ],
)
def test_folders_that_are_no_data_set_are_named(tmp_path, counts, words):
    for name in counts:
        (tmp_path / name).mkdir(parents=True)
    write_folders(tmp_path, counts, ".JPEG")
    with pytest.raises(ValueError, match=words):
        load(Dataset(name="folder"), tmp_path)


def test_one_folder_of_classes_holds_out_the_same_fifth_every_time(tmp_path):
    counts = {"a": 10, "b": 14, "c": 2, "d": 4}
    write_folders(tmp_path, counts)
    real, again = (load(Dataset(name="folder"), tmp_path) for _ in range(2))
    assert real.test.files == again.test.files and real.train.files == again.train.files
    assert not set(real.train.files) & set(real.test.files)
    assert len({*real.train.files, *real.test.files}) == sum(counts.values())
    assert np.bincount(real.test.labels).tolist() == [2, 2, 1, 1]
    held = [int(path.stem) for path in real.test.files[:2]]
    assert held not in ([0, 1], [8, 9])  # not simply the first or the last
    for split in (real.train, real.test):
        assert [path.parent.name for path in split.files] == [real.classes[label] for label in split.labels]


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny-imagenet", "folder"])
def test_a_missing_or_empty_or_unnamed_folder_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"'{name}' needs --data DIR"):
        load(Dataset(name=name), None)
    with pytest.raises(ValueError, match=f"there is no folder {tmp_path / 'nowhere'}"):
        load(Dataset(name=name), tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"folder {tmp_path} is empty"):
        load(Dataset(name=name), tmp_path)


# --- digits, subsets, counts -----------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_scans_in_grey():
    from sklearn.datasets import load_digits

    bunch, real = load_digits(), load(Dataset(name="digits"), None)
    images = np.concatenate([real.train.images, real.test.images])
    assert images.shape == (1797, 8, 8, 3) and images.dtype == np.uint8
    assert (len(real.train), len(real.test)) == (1437, 360)
    assert np.abs(images - bunch.images[..., None] * 255 / 16).max() <= 0.5
    assert images.min() == 0 and images.max() == 255
    np.testing.assert_array_equal(np.concatenate([real.train.labels, real.test.labels]), bunch.target)
    assert real.classes == tuple("0123456789")


def test_dataset_classes_takes_a_subset_in_its_order():
    whole = load(Dataset(name="digits"), None)
    part = load(Dataset(name="digits", classes=("7", "2", "9")), None)
    assert part.classes == ("7", "2", "9")
    for split, of in ((part.train, whole.train), (part.test, whole.test)):
        for label, digit in enumerate((7, 2, 9)):
            np.testing.assert_array_equal(split.images[split.labels == label], of.images[of.labels == digit])
        assert set(split.labels.tolist()) == {0, 1, 2}


def test_dataset_classes_takes_the_files_along(tmp_path):
    write_folders(tmp_path / "train", {"a": 2, "b": 1, "c": 3})
    write_folders(tmp_path / "val", {"a": 1, "b": 1, "c": 1})
    real = load(Dataset(name="folder", classes=("c", "a")), tmp_path)
    assert [path.parent.name for path in real.train.files] == ["a", "a", "c", "c", "c"]
    assert real.train.labels.tolist() == [1, 1, 0, 0, 0] and real.test.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("classes", "words"), [(("1", "ten"), "'ten', which digits does not have"), (("1", "2", "1"), "twice: 1, 2, 1")]
)
def test_wrong_classes_of_the_recipe_are_named(classes, words):
    with pytest.raises(ValueError, match=words):
        load(Dataset(name="digits", classes=classes), None)


def test_check_counts_names_the_poorest_class():
    real = RealData("x", ("a", "b", "c"), Split(np.array([0, 0, 0, 1, 1])), Split(np.array([0])))
    two = RealData("x", ("a", "b"), real.train, real.test)
    two.check_counts(2, "ipc")
    with pytest.raises(ValueError, match="class 'b' has 2 training images, but ipc 3 needs 3"):
        two.check_counts(3, "ipc 3")
    with pytest.raises(ValueError, match="class 'c' has 0 training images"):
        real.check_counts(1, "ipc 1")


@pytest.mark.parametrize("form", ["mat", "npz"])
def test_svhn_gives_the_arrays_that_were_written(tmp_path, form):
    arrays = {part: (RNG.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), np.arange(n) % 10) for part, n in SVHN}
    for part, (images, labels) in arrays.items():
        if form == "npz":
            np.savez(tmp_path / f"{part}.npz", images=images, labels=labels)
        else:  # a digit 0 is published as 10
            published = np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)
            savemat(tmp_path / f"{part}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": published})
    real = load(Dataset(name="svhn", image_size=32, resize=32), tmp_path)
    assert real.classes == tuple("0123456789")
    for split, (images, labels) in zip((real.train, real.test), arrays.values(), strict=True):
        assert np.array_equal(split.images, images) and np.array_equal(split.labels, labels)


def test_a_damaged_svhn_is_named(tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"looked for train_32x32\.mat"):
        load(Dataset(name="svhn"), tmp_path)
    (tmp_path / "train_32x32.mat").write_bytes(b"MATLAB 5.0" + bytes(300))
    with pytest.raises(ValueError, match=r"train_32x32\.mat must hold the arrays X and y"):
        load(Dataset(name="svhn"), tmp_path)
    savemat(tmp_path / "train_32x32.mat", {"X": np.zeros((8, 8, 3, 2), np.uint8), "y": np.ones((2, 1))})
    with pytest.raises(ValueError, match=r"needs X uint8 \[32, 32, 3, N\]"):
        load(Dataset(name="svhn"), tmp_path)


def test_samples_of_each_class_stay_in_order():
    rng = np.random.default_rng(0)
    order, labels = rng.permutation(50)[:40], rng.integers(0, 7, 50)
    found = by_class(order, labels, 9)
    assert [ids.tolist() for ids in found] == [[k for k in order.tolist() if labels[k] == label] for label in range(9)]
    assert [len(ids) for ids in by_class(order[:0], labels, 2)] == [0, 0]
