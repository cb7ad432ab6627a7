"""Published condensed sets: layouts, class order, values, and what is said of them."""

import io
import itertools
import json
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from datasets.table import embed_table_storage
from PIL import Image
from set_files import (
    CLASSES,
    COUNT,
    DATASET,
    EACH,
    IPC,
    LAYOUTS,
    NAMES,
    SIZE,
    first,
    is_truth,
    normalised,
    pixels,
    plain_parquet,
    png,
    write_folder,
)

from fastcondense.sets.condensed import CondensedSet
from fastcondense.sets.published_sets import read_published
from fastcondense.sets.tensor_sets import write_image_tensors


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_are_read_in_class_order(tmp_path, layout):
    images = pixels()
    published = read_published(write_folder(tmp_path / "set", images, *LAYOUTS[layout]), NAMES, IPC, DATASET)
    assert is_truth(published, images) and published.layout.endswith(", PNG")
    assert published.said == ("of 3 images a class the first 2 are taken",)


def test_files_of_a_class_are_in_the_order_of_their_numbers(tmp_path):
    images = pixels(classes=2, count=11)
    write_folder(tmp_path, images, lambda k: NAMES[k], lambda k, i: f"class{k}_id{i}.png")
    found = read_published(tmp_path, NAMES[:2], 3, DATASET).condensed.images
    assert torch.equal(found, torch.from_numpy(images[:, :3]).permute(0, 1, 4, 2, 3))  # 0 1 2, not 0 1 10


def test_digits_of_other_scripts_are_text(tmp_path):
    images, endings = pixels(classes=2, count=3), ("1", "٢", "x")
    write_folder(tmp_path, images, lambda k: NAMES[k], lambda _, i: f"1-{endings[i]}.png")
    found = read_published(tmp_path, NAMES[:2], 1, DATASET).condensed.images
    assert torch.equal(found[:, 0], torch.from_numpy(images[:, 0]).permute(0, 3, 1, 2))


@pytest.mark.parametrize("is_inside", [False, True])
def test_a_class_of_a_set_may_be_called_train(tmp_path, is_inside):
    images, names = pixels()[:2], ("plane", "train")
    write_folder(tmp_path / "train" if is_inside else tmp_path, images, lambda k: names[k], lambda _, i: f"{i}.png")
    found = read_published(tmp_path, names, IPC, DATASET).condensed.images
    assert torch.equal(found, torch.from_numpy(images[:, :IPC]).permute(0, 1, 4, 2, 3))


def test_folders_around_classes_are_entered_where_there_is_one(tmp_path):
    images = pixels()
    for number in (0, 1):  # as MGD3 writes several sets side by side
        write_folder(
            tmp_path / f"dataset_{number}", images + np.uint8(number), lambda k: NAMES[k], lambda _, i: f"{i}.png"
        )
    with pytest.raises(ValueError, match="holds several sets, dataset_0/ and dataset_1/ among them; give one"):
        read_published(tmp_path, NAMES, IPC, DATASET)
    assert is_truth(read_published(tmp_path / "dataset_1", NAMES, IPC, DATASET), images + np.uint8(1))
    deep = write_folder(tmp_path / "deep", images, lambda k: f"{NAMES[k]}/images", lambda _, i: f"{i}.png")
    assert is_truth(read_published(deep, NAMES, IPC, DATASET), images)  # as Tiny-ImageNet lies


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
    "list": lambda x: {"images": x.float().flip(0), "labels": EACH.flip(0).tolist()},
}


@pytest.mark.parametrize("layout", TENSORS)
def test_tensors_go_back_to_the_very_pixels(tmp_path, layout):
    images = pixels()
    torch.save(TENSORS[layout](normalised(images)), tmp_path / "x.pt")
    published = read_published(tmp_path / "x.pt", NAMES, IPC, DATASET)
    assert is_truth(published, images[:, ::-1].copy() if layout == "list" else images)
    assert any("taken as normalised by mean (0.485, 0.456, 0.406)" in text for text in published.said)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_as_kernel_methods_publish_is_read(tmp_path, save):
    """KIP's: images [N, S, S, 3] of floats and labels [N, classes], one-hot less its mean and then learned."""
    images, shuffled = pixels(), np.random.default_rng(2).permutation(len(EACH))
    labels = np.eye(CLASSES, dtype=np.float32)[EACH] - 1 / CLASSES
    labels += np.random.default_rng(3).uniform(-0.4, 0.4, labels.shape).astype(np.float32)
    x = normalised(images).permute(0, 2, 3, 1).float().numpy()
    save(tmp_path / "kip_cifar10_nozca.npz", images=x[shuffled], labels=labels[shuffled], steps=np.arange(9))
    slots = [[int(row) % COUNT for row in shuffled if row // COUNT == k] for k in range(CLASSES)]
    published = read_published(tmp_path, NAMES, IPC, DATASET)
    assert is_truth(published, np.stack([images[k, slots[k]] for k in range(CLASSES)]))
    assert published.layout == "tensors (kip_cifar10_nozca.npz), float32" and "not used" in published.said[1]


def test_names_in_an_npz_decide_and_bytes_may_be_in_either_order(tmp_path):
    images = pixels()
    x = normalised(images).float().numpy().astype(">f4")
    labels, classes = (CLASSES - 1 - EACH).numpy().astype(">i8"), np.array(NAMES[::-1])
    np.savez(tmp_path / "x.npz", images=x, labels=labels, classes=classes)
    assert is_truth(read_published(tmp_path / "x.npz", NAMES, IPC, DATASET), images)


@pytest.mark.parametrize("name", ["condensed.pt", "condensed.safetensors", "ddranking"])
def test_our_own_tensors_say_how_they_were_normalised(tmp_path, name):
    """Middle greys, which in ImageNet's normalisation look like pixels in [0, 1], read by a recipe of other numbers."""
    images = pixels() // 8 + 120
    condensed = CondensedSet(torch.from_numpy(images).permute(0, 1, 4, 2, 3).contiguous(), NAMES)
    paths = write_image_tensors(condensed, tmp_path / "set", DATASET)
    if name == "ddranking":
        torch.save(torch.load(paths[0])["images"], tmp_path / "images.pt")
        about = {"classes": NAMES, "mean": DATASET.mean, "std": DATASET.std}
        (tmp_path / "ddranking.json").write_text(json.dumps(about))
    path = tmp_path / "images.pt" if name == "ddranking" else tmp_path / "set" / name
    published = read_published(path, NAMES, IPC, replace(DATASET, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
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


@pytest.mark.parametrize("bounds", [(0, 10, 36), range(0, 37, 3)])
@pytest.mark.parametrize("has_labels", [True, False])
def test_parts_of_a_set_are_put_together_in_the_order_of_numbers(tmp_path, bounds, has_labels):
    """Uneven ones, and twelve of a class each: images_10 comes after images_9."""
    images = pixels()
    for part, (begin, end) in enumerate(itertools.pairwise(bounds)):
        torch.save(normalised(images)[begin:end].float(), tmp_path / f"images_{part}.pt")
        if has_labels:
            torch.save(EACH[begin:end], tmp_path / f"labels_{part}.pt")
    assert is_truth(read_published(tmp_path, NAMES, IPC, DATASET), images)


def test_a_name_that_contains_lr_or_label_is_no_file_beside(tmp_path):
    images = pixels()
    torch.save({"images": normalised(images), "labels": EACH}, tmp_path / "girlrelabelled.pt")
    torch.save(torch.tensor(0.1), tmp_path / "synset_lr.pt")
    assert is_truth(read_published(tmp_path, NAMES, IPC, DATASET), images)


def test_other_values_are_recognised_and_said(tmp_path):
    images = pixels()
    planes = torch.from_numpy(images.reshape(-1, SIZE, SIZE, 3).transpose(0, 3, 1, 2).copy())
    for values, said in (
        (planes, ()),
        (torch.from_numpy(images.reshape(-1, SIZE, SIZE, 3)), ()),
        (planes.view(CLASSES, COUNT, 3, SIZE, SIZE), ()),
        (planes.float(), ("values from 0 to 255: taken as pixels in [0, 255]",)),
        (planes.double() / 255, ("values from 0 to 1: taken as pixels in [0, 1]",)),
        (planes > 127, ("values of true and false: taken as white and black",)),
    ):
        torch.save({"images": values, "labels": EACH}, tmp_path / "x.pt")
        published = read_published(tmp_path / "x.pt", NAMES, IPC, DATASET)
        wanted = np.where(images > 127, 255, 0).astype(np.uint8) if values.dtype == torch.bool else images
        assert is_truth(published, wanted) and published.said[:-1] == said
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


NUMBERS = tuple(sorted(map(str, range(12))))  # "0", "1", "10", "11", "2", ...: place 2 is class "10"


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
    assert torch.equal(published.condensed.images, first(images[order]))


def test_unequal_numbers_are_said(tmp_path):
    images = pixels()
    folder = write_folder(tmp_path / "set", images, *LAYOUTS["rded"])
    (folder / "00003" / "class00003_id00002.png").unlink()
    published = read_published(folder, NAMES, IPC, DATASET)
    assert is_truth(published, images)
    assert published.said == ("class 'cow' has 2 images and 'cat' 3: the first 2 of each class are taken",)
