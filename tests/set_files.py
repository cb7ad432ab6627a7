"""Published condensed sets in small: pixels of twelve classes, and folders, parquet files and tensors of them."""

import io

import numpy as np
import torch
from PIL import Image

from fastcondense.recipe.settings import Dataset

SIZE, CLASSES, COUNT, IPC = 9, 12, 3, 2
NAMES = tuple("cat ant dog cow bee owl fox elk hen rat pig yak".split())
EACH = torch.arange(CLASSES).repeat_interleave(COUNT)
DATASET = Dataset(image_size=SIZE)
LAYOUTS = {
    "sre2l": (lambda k: f"new{k:03d}", lambda k, i: f"class{k:03d}_id{i:03d}.png"),
    "rded": (lambda k: f"{k:05d}", lambda k, i: f"class{k:05d}_id{i:05d}.png"),
    "plain numbers": (str, lambda _, i: f"{i}.png"),  # sorted: 0, 1, 10, 11, 2 ...
    "names": (lambda k: NAMES[k], lambda _, i: f"{i}.png"),
    "mgd3": (lambda k: f"dataset_0/{NAMES[k]}", lambda _, i: f"{i}.png"),
    "coda": (lambda k: f"generated_images/{NAMES[k]}", lambda _, i: f"{i}.png"),
    "inside train": (lambda k: f"train/{NAMES[k]}", lambda _, i: f"{i}.png"),
}


def pixels(seed=0, classes=CLASSES, count=COUNT, size=SIZE) -> np.ndarray:
    """uint8 [classes, count, size, size, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (classes, count, size, size, 3), dtype=np.uint8)


def first(images: np.ndarray) -> torch.Tensor:
    """The first images of each class as a condensed set holds them: [classes, IPC, 3, size, size]."""
    return torch.from_numpy(images[:, :IPC]).permute(0, 1, 4, 2, 3)


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


def is_truth(published, images) -> bool:
    """Whether a set that was read holds the first of these images, class by class."""
    return torch.equal(published.condensed.images, first(images)) and published.condensed.classes == NAMES


def plain_parquet(path, images, labels, cells=None, **names):
    import pyarrow.parquet

    cells = [png(x) for x in images.reshape(-1, *images.shape[2:])] if cells is None else cells
    columns = {names.get("image", "image"): cells, names.get("label", "label"): labels}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def normalised(images):
    """Float64 transcription of (x / 255 - mean) / std: [N, 3, S, S]."""
    x = images.reshape(-1, SIZE, SIZE, 3).transpose(0, 3, 1, 2) / 255
    return torch.from_numpy((x - np.array(DATASET.mean)[:, None, None]) / np.array(DATASET.std)[:, None, None])
