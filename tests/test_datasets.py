"""Data sets of image files, digits and SVHN: classes, labels, held-out images, subsets, and what is refused."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fastcondense.data.datasets import RealData, Split, load
from fastcondense.data.splits import by_class
from fastcondense.recipe.settings import Dataset

RNG = np.random.default_rng(7)
SVHN = (("train", 12), ("test", 11))


def write_image(path, size=(9, 7), colour=(10, 200, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def write_folders(root, counts, suffix=".jpg"):
    for folder, count in counts.items():
        for k in range(count):
            write_image(root / folder / f"{k:02d}{suffix}")


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
