"""Published condensed sets that are incomplete, damaged, ambiguous or harmful are refused in one line."""

import os
import shutil
import sys

import numpy as np
import pytest
import torch
from set_files import DATASET, EACH, IPC, LAYOUTS, NAMES, normalised, pixels, plain_parquet, png, write_folder

from fastcondense.sets.published_sets import read_published


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("images_0", "images_1000"), r"several files, images_0\.pt, images_1000\.pt, but no number 1: lacks a part"),
        (("images_0", "images_1"), r"each of images_0\.pt, images_1\.pt may be a set by itself"),
        (("images_0", "images_best"), "nothing says that they are parts of one set"),
        (("images-00000-of-00003", "images-00001-of-00003"), "but no number 2: lacks a part"),
        (("images-00001-of-00002",), r"has one file, images-00001-of-00002\.pt, but no number 0: lacks a part"),
        (("images-00000-of-00002",), r"has one file, images-00000-of-00002\.pt, but no number 1: lacks a part"),
    ],
)
@pytest.mark.parametrize("has_labels", [True, False])
def test_files_that_nothing_proves_to_be_parts_are_refused(tmp_path, names, words, has_labels):
    """As MTT's snapshots of one set, images_0.pt and images_1000.pt, which all have all classes."""
    for name in names:
        images = normalised(pixels()).float()
        torch.save({"images": images, **({"labels": EACH} if has_labels else {})}, tmp_path / f"{name}.pt")
    with pytest.raises(ValueError, match=words):
        read_published(tmp_path, NAMES, IPC, DATASET)


@pytest.mark.parametrize("wrong", [-1, 1.5, float("nan"), 12.0])
def test_labels_of_tensors_are_checked(tmp_path, wrong):
    labels = EACH.double()
    labels[5] = wrong
    torch.save({"images": normalised(pixels()), "labels": labels, "classes": list(NAMES)}, tmp_path / "x.pt")
    with pytest.raises(
        ValueError, match=r"x\.pt (needs class numbers from 0 to 11|needs whole numbers|has labels that)"
    ):
        read_published(tmp_path, NAMES, IPC, DATASET)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def image_is(data):
    """One image's file holds something else."""
    return in_folder(lambda _, image: image.write_bytes(data))


def in_folder(change):
    """A folder of images that is changed, and one of its files."""

    def make(root, images):
        folder = write_folder(root / "set", images, *LAYOUTS["rded"])
        change(folder, folder / "00003" / "class00003_id00001.png")
        return folder

    return make


def tensors_are(content):
    """A file of tensors."""

    def make(root, images):
        torch.save(content(normalised(images)), root / "x.pt")
        return root / "x.pt"

    return make


def file_is(name, data):
    def make(root, _):
        (root / name).write_bytes(data)
        return root / name

    return make


def npz_is(name, content):
    """A file of numpy arrays."""

    def make(root, images):
        np.savez(root / name, **content(root, normalised(images).numpy()))
        return root / name

    return make


def large_npz(root, _):
    np.savez_compressed(root / "x.npz", images=np.zeros((1_000_000_000,), dtype=np.uint8))
    return root / "x.npz"


def several(root, images):
    for name in "ab":
        torch.save(normalised(images), root / f"{name}.pt")
    return root


WRONG = {
    "missing class": (in_folder(lambda folder, _: shutil.rmtree(folder / "00011")), r"has no class 11 \('yak'\)"),
    "too few": (
        in_folder(lambda _, image: [image.unlink(), image.with_name("class00003_id00000.png").unlink()]),
        r"has 1 images of class 'cow' and 3 of 'cat', but ipc is 2; --ipc 1 takes",
    ),
    "size": (
        image_is(png(pixels(size=5)[0, 0])),
        r"id00001\.png has 5 x 5 pixels, but dataset.image_size is 9; .* set --dataset.image-size 5",
    ),
    "oblong": (image_is(png(pixels()[0, 0][:4])), r"id00001\.png has 9 x 4 pixels, .* cut it to a square"),
    "cut off": (image_is(png(pixels()[0, 0], "JPEG")[:650]), r"id00001\.png cannot be read"),
    "no image": (image_is(b"<html>404</html>"), r"id00001\.png is not an image"),
    "in the wrong folder": (
        in_folder(lambda folder, image: image.rename(folder / "00004" / image.name)),
        r"00004.class00003_id00001\.png is of another class than its folder says",
    ),
    "code": (
        lambda root, images: tensors_are(lambda _: {"images": Bomb(root / "ran"), "labels": EACH})(root, images),
        r"x\.pt cannot be read as tensors: it asks for posix\.system, and only",
    ),
    "code in npz": (
        npz_is("x.npz", lambda root, _: {"images": np.array([Bomb(root / "ran")], dtype=object), "labels": EACH}),
        r"x\.npz cannot be read: Object arrays cannot be loaded",
    ),
    "text in npz": (
        npz_is("x.npz", lambda _, x: {"images": x, "labels": np.array(["a"])}),
        "x.npz needs class numbers as",
    ),
    "no images in npz": (npz_is("x.npz", lambda _, x: {"X": x}), r"but nothing called images or image or"),
    "one label": (npz_is("x.npz", lambda _, x: {"x": x, "y": np.int64(3)}), r"x\.npz needs a label for each image"),
    "large npz": (large_npz, r"x\.npz cannot be read: it claims to hold 1,000,[\d,]+ bytes, many more than it has"),
    "whitened": (
        npz_is("kip_cifar10_ssize10_zca_nol.npz", lambda _, x: {"images": x, "labels": EACH}),
        r"zca_nol\.npz has values from .*, whitened as its name says, and nothing says by what",
    ),
    "a generator's": (
        tensors_are(lambda x: {"images": torch.linspace(-1, 1, x.numel()).view(x.shape), "labels": EACH}),
        r"x\.pt has values from -1 to 1: pixels in \[-1, 1\], or normalised by dataset\.mean and dataset\.std\?",
    ),
    "cast": (
        tensors_are(lambda x: {"images": (x > 0).byte(), "labels": EACH}),
        r"x\.pt has whole numbers of 0 and 1 alone, nearly black; are they pixels in \[0, 1\]\?",
    ),
    "cast to more": (
        tensors_are(lambda x: {"images": (x > 0).long(), "labels": EACH}),
        r"x\.pt has whole numbers of 0",
    ),
    "complex": (tensors_are(lambda x: {"images": x + 0j, "labels": EACH}), r"x\.pt has complex values"),
    "text": (
        tensors_are(lambda x: {"images": x, "labels": [NAMES[k] for k in EACH]}),
        r"x\.pt needs class numbers as labels, got \['cat', 'cat'",
    ),
    "soft labels of others": (
        tensors_are(lambda x: {"images": x, "labels": torch.eye(15)[EACH]}),
        "has 15 numbered classes, the data set 12",
    ),
    "labels from 1": (
        tensors_are(lambda x: {"images": x, "labels": EACH + 1}),
        r"x\.pt has class numbers from 1 to 12; they must count from 0",
    ),
    "rows from 1": (
        lambda root, images: plain_parquet(root / "x.parquet", images, EACH.numpy() + 1),
        r"x\.parquet has class numbers from 1 to 12; they must count from 0",
    ),
    "folders from 1": (
        lambda root, images: write_folder(root / "set", images, lambda k: str(k + 1), lambda _, i: f"{i}.png"),
        r"has no class 0 \('cat'\), but the data set has: do its numbers count from 1\?",
    ),
    "no labels": (tensors_are(lambda x: x[:35]), "has no labels, and its 35 images are not of 12 classes"),
    "labels": (
        tensors_are(lambda x: {"images": x, "labels": EACH[:35]}),
        r"needs as many labels as its 36 images, got int64 \(35,\)",
    ),
    "no class": (
        tensors_are(lambda x: {"images": x[:-3], "labels": EACH[:-3]}),
        r"x\.pt has no image of class 'yak'; 11 classes have some",
    ),
    "no tensors": (
        tensors_are(lambda _: {"state_dict": {}, "epoch": 3}),
        r"holds no images and labels as tensors, but state_dict, epoch",
    ),
    "not finite": (tensors_are(lambda x: (x / 0, EACH)), "has values that are not finite"),
    "several": (several, r"has several files, a\.pt, b\.pt; nothing says that they are parts of one set: name one"),
    "parquet": (file_is("x.parquet", b"PAR1 and nothing else"), r"x\.parquet cannot be read"),
    "no bytes": (
        lambda root, images: plain_parquet(root / "x.parquet", images, EACH.numpy(), [None] * len(EACH)),
        r"row 0 of .*x\.parquet holds no image's bytes, but None",
    ),
    "column": (
        lambda root, images: plain_parquet(root / "x.parquet", images, EACH.numpy(), label="caption"),
        r"x\.parquet needs a column 'label', but has image, caption",
    ),
    "zip": (file_is("x.zip", b"PK"), "still packed"),
    "absent": (lambda root, _: root / "absent", "there is no .*absent"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_one_line(tmp_path, kind):
    make, words = WRONG[kind]
    with pytest.raises(ValueError, match=words) as caught:
        read_published(make(tmp_path, pixels()), NAMES, IPC, DATASET)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_without_pyarrow_it_is_said_what_to_install(tmp_path, monkeypatch):
    path = plain_parquet(tmp_path / "x.parquet", pixels(), EACH.numpy())
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"need pyarrow: pip install 'fastcondense\[hf\]'"):
        read_published(path, NAMES, IPC, DATASET)
