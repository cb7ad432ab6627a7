"""Labels and images that come as arrays, and what tells one data set from another."""

import numpy as np
import pytest
from scipy.io import savemat

from fastcondense.data.arrays import checked_labels, checked_split
from fastcondense.data.datasets import load
from fastcondense.data.splits import RealData, Split
from fastcondense.loaders.file_names import FileNames
from fastcondense.recipe.settings import Dataset

IMAGES = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
CLASSES = ("a", "b", "c")


@pytest.mark.parametrize(
    "labels",
    [[0, 2, 1, 0], np.array([0, 2, 1, 0], np.uint8), np.array([0.0, 2.0, 1.0, 0.0]), np.array([[0], [2], [1], [0]])],
)
def test_whole_numbers_of_any_type_are_labels(labels):
    split = checked_split(IMAGES, labels, CLASSES, "x.npz")
    assert split.labels.dtype == np.int64 and split.labels.tolist() == [0, 2, 1, 0] and split.images is IMAGES


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, 2], r"needs as many labels as its 4 images, got int64 \(3,\)"),
        ([0, 1, 2, 3], "needs labels from 0 to 2, got 0 to 3$"),
        ([1, 2, 3, 1], "got 1 to 3: do they count from 1"),
        ([0, 1, -1, 0], "got -1 to 1"),
        ([0, 1.5, 1, 0], "needs whole numbers as labels, got 1.5"),
        ([0, np.nan, 1, 0], "has labels that are not finite"),
        (np.eye(4)[:, :3], r"got float64 \(4, 3\): one-hot"),
        ([[1], 2, [1], 2], "needs a class number for each image, got lists of several lengths"),
        (["a", "b", "c", "a"], "needs whole numbers as labels, got <U1, such as"),
        ([True, False, True, True], "needs whole numbers as labels, got bool"),
        (np.full(4, 2**63, np.uint64), "needs labels that are class numbers, got 9223372036854775808"),
    ],
)
def test_other_labels_are_refused_by_name(labels, words):
    with pytest.raises(ValueError, match=rf"^x\.npz .*{words}"):
        checked_split(IMAGES, labels, CLASSES, "x.npz")


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (IMAGES / 255, r"needs images uint8 \[N, H, W, 3\], got float64"),
        (IMAGES.transpose(0, 3, 1, 2), r"\(4, 3, 2, 2\): axes in the order N, 3, H, W"),
        (IMAGES.transpose(1, 2, 3, 0), r"axes in the order H, W, 3, N"),
        (IMAGES[..., 0], r"got uint8 \(4, 2, 2\)"),
        (IMAGES[:0], "holds no images"),
        (IMAGES[:, :0], r"holds images without pixels, \(4, 0, 2, 3\)"),
        ((IMAGES / 255 > 0.1).astype(np.uint8), "no value above 1 in its images, nearly black: are they pixels in"),
    ],
)
def test_other_images_are_refused_by_name(images, words):
    with pytest.raises(ValueError, match=rf"^x\.npz .*{words}"):
        checked_split(images, np.zeros(len(images), int), CLASSES, "x.npz")


def test_a_class_name_that_is_there_twice_is_refused():
    with pytest.raises(ValueError, match=r"x\.npz: two classes are called 'a'"):
        checked_split(IMAGES, np.zeros(4, int), ("a", "b", "a"), "x.npz")
    assert checked_labels(np.array([[3, 1]]), 2, "x").tolist() == [3, 1]


def write_npz(root, **other):
    for part in ("train", "test"):
        arrays = {"images": np.full((4, 32, 32, 3), 9, np.uint8), "labels": np.arange(4)} | other.get(part, {})
        np.savez(root / f"{part}.npz", **arrays)
    return root


def test_files_of_arrays_pass_the_same_entry(tmp_path):
    for part in ("train", "test"):
        write_npz(tmp_path, **{part: {"labels": np.array([0, 1, 2, 10])}})
        for name in ("cifar10", "svhn"):
            with pytest.raises(ValueError, match=rf"{part}\.npz needs labels from 0 to 9, got 0 to 10"):
                load(Dataset(name=name), tmp_path)
    write_npz(tmp_path, train={"classes": np.array(list("abcd"))}, test={"classes": np.array([b"a", b"b", b"c", b"d"])})
    real = load(Dataset(name="cifar10"), tmp_path)
    assert real.classes == ("a", "b", "c", "d") and real.untested() == ()
    write_npz(tmp_path, test={"labels": np.array([0, 1, 2, 2])})
    absent = load(Dataset(name="cifar10"), tmp_path).untested()
    assert absent == ("7 of 10 classes have no test image, such as 'cat'",)
    write_npz(tmp_path, train={"classes": np.array(list("abcd"))}, test={"classes": np.array(list("abdc"))})
    with pytest.raises(ValueError, match=r"test\.npz names other classes than .*train\.npz, or in another order"):
        load(Dataset(name="cifar10"), tmp_path)


@pytest.mark.parametrize(
    ("y", "wanted"),
    [
        ([1, 2, 10, 9], [1, 2, 0, 9]),
        ([0, 2, 1, 9], [0, 2, 1, 9]),
        ([0, 10, 1, 9], "labels 0 and 10; which is the digit 0"),
        ([11, 1, 2, 3], "needs labels from 0 to 9, got 1 to 11"),
        ([1.5, 1, 2, 3], "needs whole numbers"),
        ([1, 2, 3], "needs as many labels as its 4 images"),
    ],
)
def test_the_ten_of_svhn_is_the_digit_zero(tmp_path, y, wanted):
    for part in ("train", "test"):
        arrays = {"X": np.full((32, 32, 3, 4), 9, np.uint8), "y": np.array(y)[:, None]}
        savemat(tmp_path / f"{part}_32x32.mat", arrays)
    if isinstance(wanted, list):
        assert load(Dataset(name="svhn"), tmp_path).train.labels.tolist() == wanted
    else:
        with pytest.raises(ValueError, match=rf"train_32x32\.mat .*{wanted}"):
            load(Dataset(name="svhn"), tmp_path)


# --- one data set or another -----------------------------------------------------------------------------------------


def test_a_digest_changes_with_names_labels_and_bytes_not_with_the_place(tmp_path):
    def made(root, first=b"1", name="x"):
        files = []
        for k in range(4):
            files.append(tmp_path / root / "ab"[k // 2] / f"{name}{k}.png")
            files[-1].parent.mkdir(parents=True, exist_ok=True)
            files[-1].write_bytes(first if k == 0 else b"2")
        return Split(np.array([0, 0, 1, 1]), files=FileNames.of(files))

    whole = made("one")
    assert made("two/deep").digest == whole.digest
    others = [made("three", b"3"), made("four", name="y"), whole.take(np.arange(3)), whole.take(np.array([1, 0, 2, 3]))]
    assert len({whole.digest, *(split.digest for split in others)}) == 5
    arrays = (
        Split(np.array([0, 1]), IMAGES[:2]),
        Split(np.array([1, 0]), IMAGES[:2]),
        Split(np.array([0, 1]), IMAGES[2:]),
    )
    assert len({split.digest for split in arrays}) == 3
    assert RealData("x", ("a", "b"), whole, arrays[0]).about() == {
        "train": {"images": 4, "sha256": whole.digest},
        "test": {"images": 2, "sha256": arrays[0].digest},
    }


def test_digits_read_no_folder(tmp_path):
    with pytest.raises(
        ValueError, match=f"'digits' ships with scikit-learn and reads no --data, but {tmp_path} is given"
    ):
        load(Dataset(name="digits"), tmp_path)
