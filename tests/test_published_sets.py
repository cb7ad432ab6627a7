"""Published condensed sets: layouts, class order, values, and what is said of wrong ones."""

import io
import json
import os
import shutil
import sys

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets.table import embed_table_storage
from PIL import Image
from small import fastcondense, shards

from fastcondense.data.datasets import load
from fastcondense.files import read_json
from fastcondense.recipe.settings import Dataset
from fastcondense.sets.imported import judge_order
from fastcondense.sets.published_sets import class_order, read_published
from fastcondense.tensor_files import read_tensors
from fastcondense.vision import timm

SIZE, CLASSES, COUNT, IPC = 9, 12, 3, 2
NAMES = tuple("cat ant dog cow bee owl fox elk hen rat pig yak".split())
DATASET = Dataset(image_size=SIZE)


def pixels(seed=0, classes=CLASSES, count=COUNT, size=SIZE) -> np.ndarray:
    """uint8 [classes, count, size, size, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (classes, count, size, size, 3), dtype=np.uint8)


def png(image: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def write_folder(root, images, folder, file, kind="PNG"):
    for label, of_class in enumerate(images):
        for slot, image in enumerate(of_class):
            path = root / folder(label) / file(label, slot)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(image, kind))
    return root


LAYOUTS = {
    "sre2l": (lambda k: f"new{k:03d}", lambda k, i: f"class{k:03d}_id{i:03d}.png"),
    "rded": (lambda k: f"{k:05d}", lambda k, i: f"class{k:05d}_id{i:05d}.png"),
    "plain numbers": (str, lambda _, i: f"{i}.png"),  # sorted: 0, 1, 10, 11, 2 ...
    "names": (lambda k: NAMES[k], lambda _, i: f"{i}.png"),
    "inside train": (lambda k: f"train/{NAMES[k]}", lambda _, i: f"{i}.png"),
}


def is_truth(published, images) -> bool:
    wanted = torch.from_numpy(images[:, :IPC]).permute(0, 1, 4, 2, 3)
    return torch.equal(published.condensed.images, wanted) and published.condensed.classes == NAMES


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_are_read_in_class_order(tmp_path, layout):
    images = pixels()
    published = read_published(write_folder(tmp_path / "set", images, *LAYOUTS[layout]), NAMES, IPC, DATASET)
    assert is_truth(published, images) and published.layout.endswith(", PNG")
    assert published.said == ("of 3 images a class the first 2 are taken",)


def test_folders_are_renamed_by_classes_json(tmp_path):
    images = pixels()
    write_folder(tmp_path / "set", images, lambda k: f"{CLASSES - k:02d}", lambda _, i: f"{i}.png")
    mapping = {f"{CLASSES - k:02d}": name for k, name in enumerate(NAMES)}
    (tmp_path / "set" / "classes.json").write_text(json.dumps(mapping))
    assert is_truth(read_published(tmp_path / "set", NAMES, IPC, DATASET), images)
    (tmp_path / "set" / "classes.json").write_text(json.dumps(dict(list(mapping.items())[1:])))
    with pytest.raises(ValueError, match=r"classes\.json needs the class of each folder.* lacks '12'"):
        read_published(tmp_path / "set", NAMES, IPC, DATASET)


def test_jpeg_is_decoded_as_pillow_does_and_called_lossy(tmp_path):
    images = pixels()
    write_folder(tmp_path / "set", images, LAYOUTS["sre2l"][0], lambda k, i: f"class{k:03d}_id{i:03d}.jpg", "JPEG")
    published = read_published(tmp_path / "set", NAMES, IPC, DATASET)
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(png(x, "JPEG")))) for x in images.reshape(-1, SIZE, SIZE, 3)])
    assert is_truth(published, decoded.reshape(images.shape)) and published.layout.endswith("JPEG, which is lossy")


def dataset_of(images, order, names, split=None):
    """The real library's data set: rows in the given order, class labels numbered by `names`."""
    rows = [divmod(int(row), images.shape[1]) for row in order]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    columns = {
        "image": [Image.fromarray(images[k, i]) for k, i in rows],
        "label": [names.index(NAMES[k]) for k, _ in rows],
    }
    return datasets.Dataset.from_dict(columns, features=features, split=split)


def test_parquet_of_the_real_library_is_read_by_its_class_names(tmp_path):
    """Two shards with several row groups, rows and names in other orders, beside a test split."""
    images = pixels()
    order = np.random.default_rng(1).permutation(CLASSES * COUNT)
    made = dataset_of(images, order, sorted(NAMES))
    (tmp_path / "data").mkdir()
    for shard in range(2):
        made.shard(2, shard, contiguous=True).to_parquet(tmp_path / f"data/train-0000{shard}-of-00002.parquet", 5)
    made.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    slots = [[row % COUNT for row in order if row // COUNT == k] for k in range(CLASSES)]  # row order is slot order
    wanted = np.stack([images[k, slots[k]] for k in range(CLASSES)])
    published = read_published(tmp_path, NAMES, IPC, DATASET)
    assert is_truth(published, wanted) and published.layout == "2 parquet files, PNG"
    assert is_truth(read_published(tmp_path / "data", NAMES, IPC, DATASET), wanted)
    made.to_parquet(tmp_path / "one.parquet")
    assert is_truth(read_published(tmp_path / "one.parquet", NAMES, IPC, DATASET), wanted)


def plain_parquet(path, images, labels, cells=None, **names):
    cells = [png(x) for x in images.reshape(-1, *images.shape[2:])] if cells is None else cells
    columns = {names.get("image", "image"): cells, names.get("label", "label"): labels}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet_of_plain_bytes_with_names_or_numbers(tmp_path):
    images, each = pixels(), np.arange(CLASSES).repeat(COUNT)
    named = plain_parquet(tmp_path / "a.parquet", images, [NAMES[k] for k in each], image="img", label="class")
    assert is_truth(read_published(named, NAMES, IPC, DATASET), images)
    numbered = plain_parquet(tmp_path / "b.parquet", images, each)
    assert is_truth(read_published(numbered, NAMES, IPC, DATASET), images)


def test_a_class_label_of_sorted_numbers_is_read_as_numbers(tmp_path):
    """What `datasets` makes of folders 0 ... 11: names 0, 1, 10, 11, 2 ..., so that label 2 is class 10."""
    images = pixels()
    write_folder(tmp_path / "set", images, *LAYOUTS["plain numbers"])
    made = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), split="train", cache_dir=tmp_path / "c")
    assert made.features["label"].names[2] == "10"
    whole = made.with_format("arrow").map(embed_table_storage, batched=True, load_from_cache_file=False)  # with bytes
    whole.to_parquet(tmp_path / "set.parquet")
    assert is_truth(read_published(tmp_path / "set.parquet", NAMES, IPC, DATASET), images)


def normalised(images):
    """Float64 transcription of (x / 255 - mean) / std: [N, 3, S, S]."""
    x = images.reshape(-1, SIZE, SIZE, 3).transpose(0, 3, 1, 2) / 255
    return torch.from_numpy((x - np.array(DATASET.mean)[:, None, None]) / np.array(DATASET.std)[:, None, None])


EACH = torch.arange(CLASSES).repeat_interleave(COUNT)
TENSORS = {
    "dict": lambda x: {"images": x.float(), "labels": EACH, "lr": torch.tensor(0.01)},
    "double": lambda x: {"images": x, "labels": EACH.int()},
    "pair": lambda x: (x.float(), EACH),
    "DC": lambda x: {
        "data": [[torch.zeros_like(x), EACH], [x.float(), EACH]],
        "accs_all_exps": {"ConvNet": [np.float64(28.1), np.float32(27), np.int64(2)]},
    },
    "CIM": lambda x: {"dataset": "cifar", "data": x.float(), "label": EACH},
    "DD-Ranking": lambda x: x.float(),
    "DATM": lambda x: (x.float(), torch.nn.functional.one_hot(EACH, CLASSES) * 3.0 - 1),
    "names": lambda x: {"images": x.float(), "labels": CLASSES - 1 - EACH, "classes": list(NAMES[::-1])},
}


@pytest.mark.parametrize("layout", TENSORS)
def test_tensors_go_back_to_the_very_pixels(tmp_path, layout):
    images = pixels()
    torch.save(TENSORS[layout](normalised(images)), tmp_path / "x.pt")
    published = read_published(tmp_path / "x.pt", NAMES, IPC, DATASET)
    assert is_truth(published, images)
    assert any("taken as normalised by mean (0.485, 0.456, 0.406)" in text for text in published.said)


@pytest.mark.parametrize("name", ["images_best.pt", "images.pt", "cifar10_IPC2_normalize_images.pt"])
def test_labels_in_a_file_of_their_own(tmp_path, name):
    images = pixels()
    shuffled = torch.from_numpy(np.random.default_rng(2).permutation(len(EACH)))
    torch.save(normalised(images)[shuffled].float(), tmp_path / name)
    torch.save(EACH[shuffled].float(), tmp_path / name.replace("images", "labels"))
    torch.save(torch.tensor(0.1), tmp_path / "lr_best.pt")
    wanted = np.stack([images[k, [int(row) % COUNT for row in shuffled if row // COUNT == k]] for k in range(CLASSES)])
    assert is_truth(read_published(tmp_path, NAMES, IPC, DATASET), wanted)
    assert is_truth(read_published(tmp_path / name, NAMES, IPC, DATASET), wanted)


def test_parts_of_a_tensor_set_are_put_together(tmp_path):
    images = pixels()
    for part, rows in enumerate((slice(0, 10), slice(10, 36))):
        torch.save(normalised(images)[rows].float(), tmp_path / f"images_best_{part}.pt")
        torch.save(EACH[rows], tmp_path / f"labels_best_{part}.pt")
    assert is_truth(read_published(tmp_path, NAMES, IPC, DATASET), images)


def test_parts_are_in_the_order_of_numbers(tmp_path):
    """Twelve files of a class each, without labels: images_10 comes after images_9."""
    images = pixels()
    for k in range(CLASSES):
        torch.save(normalised(images)[COUNT * k : COUNT * k + COUNT].float(), tmp_path / f"images_{k}.pt")
    assert is_truth(read_published(tmp_path, NAMES, IPC, DATASET), images)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("images_0", "images_1000"), r"several files, images_0\.pt, images_1000\.pt, but no number 1: lacks a part"),
        (("images_0", "images_1"), r"each of images_0\.pt, images_1\.pt may be a set by itself"),
        (("images_0", "images_best"), "nothing says that they are parts of one set"),
        (("images-00000-of-00003", "images-00001-of-00003"), "but no number 2: lacks a part"),
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


def test_a_name_that_contains_lr_or_label_is_no_file_beside(tmp_path):
    images = pixels()
    torch.save({"images": normalised(images), "labels": EACH}, tmp_path / "girlrelabelled.pt")
    torch.save(torch.tensor(0.1), tmp_path / "synset_lr.pt")
    assert is_truth(read_published(tmp_path, NAMES, IPC, DATASET), images)


@pytest.mark.parametrize("wrong", [-1, 1.5, float("nan"), 12.0])
def test_labels_of_tensors_are_checked(tmp_path, wrong):
    labels = EACH.double()
    labels[5] = wrong
    torch.save({"images": normalised(pixels()), "labels": labels, "classes": list(NAMES)}, tmp_path / "x.pt")
    with pytest.raises(
        ValueError, match=r"x\.pt (needs class numbers from 0 to 11|needs whole numbers|has labels that)"
    ):
        read_published(tmp_path, NAMES, IPC, DATASET)


def test_other_values_are_recognised_and_said(tmp_path):
    images = pixels()
    planes = torch.from_numpy(images.reshape(-1, SIZE, SIZE, 3).transpose(0, 3, 1, 2).copy())
    for values, said in (
        (planes, ()),
        (torch.from_numpy(images.reshape(-1, SIZE, SIZE, 3)), ()),
        (planes.view(CLASSES, COUNT, 3, SIZE, SIZE), ()),
        (planes.float(), ("values from 0 to 255: taken as pixels in [0, 255]",)),
        (planes.double() / 255, ("values from 0 to 1: taken as pixels in [0, 1]",)),
    ):
        torch.save({"images": values, "labels": EACH}, tmp_path / "x.pt")
        published = read_published(tmp_path / "x.pt", NAMES, IPC, DATASET)
        assert is_truth(published, images) and published.said[:-1] == said
    beyond = normalised(images).float()
    beyond[0, :, :3] = 99  # 81 of 8748 values
    torch.save({"images": beyond, "labels": EACH}, tmp_path / "x.pt")
    published = read_published(tmp_path / "x.pt", NAMES, IPC, DATASET)
    assert "0.93 % of them are beyond black and white, and clamped" in published.said[0]
    images[0, 0, :3] = 255
    assert is_truth(published, images)
    torch.save({"images": 4 * normalised(images), "labels": EACH}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="were not normalised by"):
        read_published(tmp_path / "x.pt", NAMES, IPC, DATASET)


# --- class order -----------------------------------------------------------------------------------------------------


def test_numbers_mean_imagenet_where_there_are_a_thousand():
    wnids = timm.data.ImageNetInfo().label_names()
    classes = [wnids[k] for k in (701, 0, 217)]
    rows, said = class_order([f"{k:05d}" for k in range(1000)], classes)
    assert rows == [701, 0, 217] and said == ("997 classes of the set are not in the data set, and left out",)
    numbers = sorted(map(str, range(1000)))
    assert [numbers[row] for row in class_order(numbers, classes)[0]] == ["701", "0", "217"]
    words = timm.data.ImageNetInfo().label_descriptions()
    assert class_order(words, classes)[0] == [701, 0, 217]
    assert len(set(words)) < 1000  # two cranes
    assert class_order([word.split(",")[0].replace(" ", "_") for word in words], classes)[0] == [701, 0, 217]
    with pytest.raises(ValueError, match="has no class 'n03888257'"):
        class_order([words[1], words[0], *words[2:]], classes)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (NAMES[:11], "has no class 'yak' of the data set; it has 11"),
        ([*NAMES[:11], "yack"], "has no class 'yak' .* among them 'yack'"),
        ([f"new{k:03d}" for k in range(11)], r"has no class 11 \('yak'\)"),
        ([f"{k + 1:05d}" for k in range(12)], r"has no class 0 \('cat'\)"),
        ([str(k) for k in range(13)], "has 13 numbered classes, the data set 12"),
        ([*map(str, range(11)), "00"], "class 0 of the set has two folders"),
        ([*NAMES, "cat"], "has class 'cat' twice"),
    ],
)
def test_classes_that_do_not_line_up_are_named(names, words):
    with pytest.raises(ValueError, match=words):
        class_order(names, NAMES)


NUMBERS = tuple(sorted(map(str, range(12))))  # "0", "1", "10", "11", "2", ...: place 2 is class "10"


@pytest.mark.parametrize("layout", ["sre2l", "rded", "plain numbers"])
def test_folders_of_numbers_are_names_where_they_are_and_else_places(tmp_path, layout):
    """A folder "3" is the class "3"; new003 and 00003 are what a network's output 3 was."""
    images = pixels()
    write_folder(tmp_path / "set", images, *LAYOUTS[layout])
    published = read_published(tmp_path / "set", NUMBERS, IPC, DATASET)
    order = [int(name) for name in NUMBERS] if layout == "plain numbers" else list(range(12))
    wanted = torch.from_numpy(images[order][:, :IPC]).permute(0, 1, 4, 2, 3)
    assert torch.equal(published.condensed.images, wanted)
    how = "names of its classes" if layout == "plain numbers" else "places in the order of its classes"
    assert published.said[0] == f"the data set's classes are numbers, and those of the set are taken as {how}"


@pytest.mark.parametrize("kind", ["tensors", "parquet", "parquet of text"])
def test_numbers_alone_are_places_and_text_is_a_name(tmp_path, kind):
    images = pixels()
    if kind == "tensors":
        torch.save({"images": normalised(images), "labels": EACH}, tmp_path / "x.pt")
    else:
        labels = EACH.numpy() if kind == "parquet" else [str(k) for k in EACH.tolist()]
        plain_parquet(tmp_path / "x.parquet", images, labels)
    published = read_published(tmp_path, NUMBERS, IPC, DATASET)
    order = [int(name) for name in NUMBERS] if kind == "parquet of text" else list(range(12))
    assert torch.equal(published.condensed.images, torch.from_numpy(images[order][:, :IPC]).permute(0, 1, 4, 2, 3))


def test_files_that_state_a_place_decide_what_a_number_is(tmp_path):
    """Our export of classes "0" ... "11" without its classes.json: folder "10" holds class00002_id00000.png."""
    images = pixels()
    names = (lambda k: NUMBERS[k], lambda k, i: f"class{k:05d}_id{i:05d}.png")
    write_folder(tmp_path / "names", images, *names)
    published = read_published(tmp_path / "names", NUMBERS, IPC, DATASET)
    wanted = torch.from_numpy(images[:, :IPC]).permute(0, 1, 4, 2, 3)
    assert torch.equal(published.condensed.images, wanted)
    write_folder(tmp_path / "places", images, str, names[1])  # folder "10" holds class00010_id00000.png
    assert torch.equal(read_published(tmp_path / "places", NUMBERS, IPC, DATASET).condensed.images, wanted)
    write_folder(tmp_path / "neither", images, str, lambda k, i: f"class{(k + 1) % 12:05d}_id{i:05d}.png")
    with pytest.raises(ValueError, match="files in 0 are of another class than its folder says: they name number 1"):
        read_published(tmp_path / "neither", NUMBERS, IPC, DATASET)


def test_a_class_without_an_image_is_named(tmp_path):
    torch.save({"images": normalised(pixels())[:-3], "labels": EACH[:-3]}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt has no image of class 'yak'; 11 classes have some"):
        read_published(tmp_path / "x.pt", NAMES, IPC, DATASET)


def test_more_classes_than_the_data_set_has_are_left_out(tmp_path):
    images = pixels()
    write_folder(tmp_path / "set", images, *LAYOUTS["names"])
    published = read_published(tmp_path / "set", NAMES[4:6], IPC, DATASET)
    wanted = torch.from_numpy(images[4:6, :IPC]).permute(0, 1, 4, 2, 3)
    assert torch.equal(published.condensed.images, wanted)
    assert "10 classes of the set are not in the data set, and left out" in published.said


# --- what is wrong ---------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def broken(root, kind):
    images = pixels()
    folder = write_folder(root / "set", images, *LAYOUTS["rded"])
    victim = folder / "00003" / "class00003_id00001.png"
    if kind == "missing class":
        for file in (folder / "00011").iterdir():
            file.unlink()
        (folder / "00011").rmdir()
    elif kind == "too few":
        victim.unlink()
        (folder / "00003" / "class00003_id00000.png").unlink()
    elif kind == "size":
        victim.write_bytes(png(pixels(size=5)[0, 0]))
    elif kind == "oblong":
        victim.write_bytes(png(pixels()[0, 0][:4]))
    elif kind == "cut off":
        victim.write_bytes(png(pixels()[0, 0], "JPEG")[:650])
    elif kind == "no image":
        victim.write_bytes(b"<html>404</html>")
    elif kind == "in the wrong folder":
        victim.rename(folder / "00004" / "class00003_id00001.png")
    elif kind == "code":
        torch.save({"images": Bomb(root / "ran"), "labels": EACH}, root / "x.pt")
        return root / "x.pt"
    elif kind == "no labels":
        torch.save(normalised(images)[:35], root / "x.pt")
        return root / "x.pt"
    elif kind == "labels":
        torch.save({"images": normalised(images), "labels": EACH[:35]}, root / "x.pt")
        return root / "x.pt"
    elif kind == "no tensors":
        torch.save({"state_dict": {}, "epoch": 3}, root / "x.pt")
        return root / "x.pt"
    elif kind == "not finite":
        torch.save((normalised(images) / 0, EACH), root / "x.pt")
        return root / "x.pt"
    elif kind == "several":
        torch.save(normalised(images), root / "a.pt")
        torch.save(normalised(images), root / "b.pt")
        return root
    elif kind == "parquet":
        (root / "x.parquet").write_bytes(b"PAR1 and nothing else")
        return root / "x.parquet"
    elif kind == "no bytes":
        return plain_parquet(root / "x.parquet", images, EACH.numpy(), [None] * len(EACH))
    elif kind == "column":
        return plain_parquet(root / "x.parquet", images, EACH.numpy(), label="caption")
    elif kind == "zip":
        (root / "x.zip").write_bytes(b"PK")
        return root / "x.zip"
    elif kind == "absent":
        return root / "absent"
    return folder


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing class", r"has no class 11 \('yak'\)"),
        ("too few", r"has 1 images of class 'cow' and 3 of 'cat', but ipc is 2; --ipc 1 takes"),
        ("size", r"id00001\.png has 5 x 5 pixels, but dataset.image_size is 9; .* set --dataset.image-size 5"),
        ("oblong", r"id00001\.png has 9 x 4 pixels, .* cut it to a square"),
        ("cut off", r"id00001\.png cannot be read"),
        ("no image", r"id00001\.png is not an image"),
        ("in the wrong folder", r"00004.class00003_id00001\.png is of another class than its folder says"),
        ("code", r"x\.pt cannot be read as weights: it asks for posix\.system, and only"),
        ("no labels", "has no labels, and its 35 images are not of 12 classes"),
        ("labels", r"needs as many labels as its 36 images, got int64 \(35,\)"),
        ("no tensors", r"holds no images and labels as tensors, but state_dict, epoch"),
        ("not finite", "has values that are not finite"),
        ("several", r"has several files, a\.pt, b\.pt; nothing says that they are parts of one set: name one"),
        ("parquet", r"x\.parquet cannot be read"),
        ("no bytes", r"row 0 of .*x\.parquet holds no image's bytes, but None"),
        ("column", r"x\.parquet needs a column 'label', but has image, caption"),
        ("zip", "still packed"),
        ("absent", "there is no .*absent"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, kind, words):
    with pytest.raises(ValueError, match=words) as caught:
        read_published(broken(tmp_path, kind), NAMES, IPC, DATASET)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_unequal_numbers_are_said(tmp_path):
    images = pixels()
    folder = write_folder(tmp_path / "set", images, *LAYOUTS["rded"])
    (folder / "00003" / "class00003_id00002.png").unlink()
    published = read_published(folder, NAMES, IPC, DATASET)
    assert is_truth(published, images)
    assert published.said == ("class 'cow' has 2 images and 'cat' 3: the first 2 of each class are taken",)


def test_without_pyarrow_it_is_said_what_to_install(tmp_path, monkeypatch):
    path = plain_parquet(tmp_path / "x.parquet", pixels(), EACH.numpy())
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"need pyarrow: pip install 'fastcondense\[hf\]'"):
        read_published(path, NAMES, IPC, DATASET)


# --- in a run --------------------------------------------------------------------------------------------------------


def digits(count=10, order=range(10)) -> np.ndarray:
    """Real digits, `count` a class, uint8 [10, count, 8, 8, 3]; class k holds those of order[k]."""
    split = load(Dataset(name="digits", image_size=8, resize=8), None).train
    return np.stack([split.images[split.labels == k][:count] for k in order])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("published"), digits(), *LAYOUTS["sre2l"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, published):
    """A run of all stages on imported images."""
    out = tmp_path_factory.mktemp("run") / "digits"
    assert run("run", out, "--images", str(published)) == 0
    return out


def run(command, out, *more) -> int:
    return fastcondense(command, out, "--train.seeds", "1", "--evaluate.baselines", "random_soft", *more)


def fresh(out, finished):
    """A new run that has the finished one's teachers."""
    shutil.copytree(finished / "teachers", out / "teachers")
    return out


def said(capsys) -> str:
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 1 and lines[0].startswith("fastcondense: ")
    return lines[0]


def events(out) -> str:
    return (out / "log.jsonl").read_text()


def test_a_run_on_imported_images_goes_all_the_way_and_names_them(finished, published, capsys):
    wanted = torch.from_numpy(digits(2)).permute(0, 1, 4, 2, 3)
    for path in (finished / "condensed").glob("shard-*"):
        shard, _ = read_tensors(path)
        assert torch.equal(shard["images"], wanted[shard["classes"], shard["slots"]])
    origin = read_json(finished / "condensed" / "manifest.json")["origin"]
    assert origin["path"] == str(published) and origin["layout"] == "numbered folders (new000), PNG"
    assert len(origin["sha256"]) == 64 and min(origin["top1"].values()) > 50
    assert "20 images are imported from" in events(finished) and "imported images right" in events(finished)
    result = read_json(finished / "result.json")
    assert result["origin"] == {key: origin[key] for key in ("path", "layout", "sha256")}
    assert result["seconds"]["recover"] == 0
    assert run("evaluate", finished) == 0
    out = capsys.readouterr().out
    assert "imported, soft labels" in out and f"images: imported from {published}" in " ".join(out.split())


def test_an_import_again_changes_nothing_and_other_images_are_refused(finished, published, tmp_path, capsys):
    before, manifest = shards(finished), (finished / "condensed" / "manifest.json").read_bytes()
    assert run("recover", finished, "--images", str(published)) == 0
    assert "they were here already" in capsys.readouterr().out
    assert shards(finished) == before and (finished / "condensed" / "manifest.json").read_bytes() == manifest
    images = digits()
    images[7, 1, 0, 0] += 1
    other = write_folder(tmp_path / "other", images, *LAYOUTS["sre2l"])
    assert run("recover", finished, "--images", str(other)) == 1
    assert "holds other images (shard-00003.safetensors) than" in said(capsys)
    assert run("recover", finished, "--recover.batch-size", "10") == 1
    assert "recover.batch_size was 5, now 10" in said(capsys)
    assert shards(finished) == before


def test_a_larger_set_goes_on_from_the_images_that_are_there(finished, published, tmp_path, capsys):
    out = fresh(tmp_path / "r", finished)
    assert run("squeeze", out, "--images", str(published), "--ipc", "1") == 0
    first = shards(out)
    capsys.readouterr()
    assert run("recover", out) == 1
    assert f"its images are imported: add --images {published}" in said(capsys)
    assert run("recover", out, "--images", str(published)) == 0
    assert first.items() <= shards(out).items() and shards(out) == shards(finished)


def test_students_of_other_images_are_others(finished, tmp_path):
    """After an exchange of the images the students on them are trained anew, those on real images are kept."""
    out = shutil.copytree(finished, tmp_path / "r")
    shutil.rmtree(out / "condensed")
    other = write_folder(tmp_path / "other", digits()[:, ::-1], *LAYOUTS["sre2l"])
    assert run("train", out, "--images", str(other)) == 0
    assert len(list(out.glob("students/*/condensed/seed*"))) == 2 and len(list(out.glob("students/*/random_*"))) == 1


def test_recovered_images_are_not_mixed_with_imported_ones(finished, published, tmp_path, capsys):
    out = fresh(tmp_path / "r", finished)
    assert run("recover", out, "--ipc", "1") == 0
    before = shards(out)
    assert run("recover", out, "--images", str(published)) == 1
    assert "holds images that were recovered" in said(capsys) and shards(out) == before


def test_nothing_is_left_by_a_set_that_is_refused(tmp_path, capsys):
    write_folder(tmp_path / "set", pixels(classes=10), *LAYOUTS["sre2l"])
    assert run("recover", tmp_path / "r", "--images", str(tmp_path / "set")) == 1
    assert "9 x 9 pixels, but dataset.image_size is 8" in said(capsys) and not (tmp_path / "r").exists()


def test_another_class_order_is_found_by_the_teachers(finished, tmp_path, capsys):
    out = fresh(tmp_path / "r", finished)
    order = [*range(1, 10), 0]
    write_folder(tmp_path / "set", digits(order=order), *LAYOUTS["sre2l"])
    assert run("recover", out, "--ipc", "10", "--images", str(tmp_path / "set")) == 1
    line = said(capsys)
    assert "in another class order than the data set" in line and "10 classes renamed ('0' shows '1'," in line
    assert run("train", out, "--ipc", "10") == 1  # nor by the next stage
    assert "another class order" in said(capsys)


def predictions(rights, order, count, classes=20, seed=0):
    """Labels, and predictions of a teacher that names a share of the images right, if class k holds order[k]."""
    generator = np.random.default_rng(seed)
    labels = np.arange(classes).repeat(count)
    true = np.asarray(order)[labels]
    predicted = np.where(generator.random(len(true)) < rights, true, generator.integers(0, classes, len(true)))
    return torch.from_numpy(labels), torch.from_numpy(predicted), [str(k) for k in range(classes)]


@pytest.mark.parametrize(("rights", "count"), [(0.9, 2), (0.8, 5), (0.6, 10)])
def test_renamed_classes_are_told_from_chance(rights, count):
    order = np.roll(np.arange(20), 1)
    with pytest.raises(ValueError, match=r"with (19|20) classes renamed"):
        judge_order(*predictions(rights, order, count))
    top1, text = judge_order(*predictions(rights, np.arange(20), count))
    assert top1 == pytest.approx(rights, abs=0.15) and "chance" not in text


@pytest.mark.parametrize("count", [1, 2, 10])
def test_a_teacher_at_chance_proves_nothing(count):
    for seed in range(10):
        top1, text = judge_order(*predictions(0.0, np.arange(20), count, seed=seed))
        assert top1 < 0.25 and "as chance would" in text
    assert ("no class order mends it" in text) == (count > 1)


def test_one_image_a_class_tells_of_an_order_where_all_fit():
    """Twenty images that are named after twenty different classes: at random with probability 20! / 20^20 = 2e-8."""
    labels, _, classes = predictions(1.0, np.arange(20), 1)
    with pytest.raises(ValueError, match="names 0 % of them right, and 100 % with 20 classes renamed"):
        judge_order(labels, (labels + 1) % 20, classes)
    two = torch.arange(2)
    assert judge_order(two, 1 - two, ["a", "b"])[0] == 0


def test_two_exchanged_classes_are_refused():
    order = np.arange(20)
    order[[3, 7]] = 7, 3
    with pytest.raises(ValueError, match=r"2 classes renamed \('3' shows '7', '7' shows '3'\)"):
        judge_order(*predictions(0.95, order, 10))
