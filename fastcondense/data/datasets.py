"""Real data sets as published: labels, class order, and images in memory or as files.

Class order is part of a data set: label k means ``classes[k]`` in everything that is made from it.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .. import restricted_pickle
from ..files import read_lines
from ..loaders.beton import read_beton
from ..loaders.file_names import FileNames
from ..loaders.reading import reading
from ..recipe.settings import Dataset
from ..user_functions import is_own, load_function
from .array_files import read_mat, read_npz
from .arrays import checked_labels, checked_split, labels_of_classes
from .image_folders import read_folders, read_tiny_imagenet
from .splits import RealData, Split

_HOLDS = "{{path}} must hold the arrays {}: {{error}}"
_BETONS = ("train.beton", "val.beton")
_NAMED = 20
"""Classes that a message names."""
CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())


def load(dataset: Dataset, data: Path | None) -> RealData:
    """Reads the data set that the recipe names from the folder `data` (digits needs none).

    Raises ValueError that says what was looked for where.
    """
    if is_own(dataset.name):
        real = _own(dataset.name, data)
    elif dataset.name == "digits":
        if data is not None:
            raise ValueError(
                f"data set 'digits' ships with scikit-learn and reads no --data, but {data} is given: leave it out, or "
                "name what it holds, such as --dataset.name folder"
            )
        real = _digits()
    else:
        if data is None:
            raise ValueError(f"data set {dataset.name!r} needs --data DIR, the folder that holds it")
        if not data.is_dir():
            raise ValueError(f"there is no folder {data}")
        if not any(data.iterdir()):
            raise ValueError(f"folder {data} is empty")
        if dataset.name == "folder" and is_packed(dataset, data):
            real = _packed(data, dataset.name)
            return _only(real, dataset.classes) if dataset.classes else real
        reader = {
            "cifar10": _cifar,
            "cifar100": _cifar,
            "svhn": _svhn,
            "tiny-imagenet": read_tiny_imagenet,
            "folder": read_folders,
        }
        real = reader[dataset.name](data, dataset.name)
    return _only(real, dataset.classes) if dataset.classes else real


def _only(real: RealData, classes: tuple[str, ...]) -> RealData:
    if len(set(classes)) < len(classes):
        raise ValueError(f"dataset.classes names a class twice: {', '.join(classes)}")
    missing = [name for name in classes if name not in real.classes]
    if missing:
        named = ", ".join(real.classes[:_NAMED]) + f" and {len(real.classes) - _NAMED} more" * (
            len(real.classes) > _NAMED
        )
        raise ValueError(
            f"dataset.classes names {missing[0]!r}, which {real.name} does not have; its {len(real.classes)} classes "
            f"are {named}: name those (--dataset.classes), or write a recipe for them (fastcondense new --data DIR)"
        )
    new_label = np.full(len(real.classes), -1)
    new_label[[real.classes.index(name) for name in classes]] = np.arange(len(classes))

    def keep(split: Split) -> Split:
        kept = split.take(np.flatnonzero(new_label[split.labels] >= 0))
        return replace(kept, labels=new_label[kept.labels])

    return replace(real, classes=classes, train=keep(real.train), test=keep(real.test))


def _own(reference: str, data: Path | None) -> RealData:
    """What the user's own function reads: classes, and images and labels of both splits.

    Raises ValueError for anything else.
    """
    made, where = load_function(reference, "dataset.name")(data), f"dataset.name {reference!r}"
    try:
        names, *parts = made
        (train, train_labels), (test, test_labels) = parts
        classes = tuple(map(str, names))
    except (TypeError, ValueError):
        raise ValueError(f"{where} must give classes, (images, labels), and (images, labels) of test") from None

    def split(images: Any, labels: Any, part: str) -> Split:
        if isinstance(images, np.ndarray):
            return checked_split(images, labels, classes, f"{where}, {part},")
        try:
            files = FileNames.of(images)
        except TypeError:
            raise ValueError(
                f"{where}, {part}, needs images uint8 [N, H, W, 3] or paths of files, got a {type(images).__name__} of "
                "neither"
            ) from None
        return Split(labels_of_classes(labels, len(files), classes, f"{where}, {part},"), files=files)

    return RealData(reference, classes, split(train, train_labels, "training"), split(test, test_labels, "test"))


def _digits() -> RealData:
    # The scans that scikit-learn ships: 8 x 8, 17 grey levels, a line each with its class at the end. The last fifth is
    # the test split: other writers. Importing scikit-learn takes longer than reading its file.
    package = find_spec("sklearn")
    assert package is not None and package.origin is not None  # fastcondense depends on it
    rows = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    grey = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images, labels = np.repeat(grey[..., None], 3, axis=3), rows[:, -1].astype(np.int64)
    cut, classes = len(labels) * 4 // 5, tuple("0123456789")
    return RealData("digits", classes, Split(labels[:cut], images[:cut]), Split(labels[cut:], images[cut:]))


# --- CIFAR -----------------------------------------------------------------------------------------------------------


def _unpickle(path: Path) -> dict[str, Any]:
    with reading(path, "{path} is not a CIFAR batch: {error}"):
        return dict(restricted_pickle.load_plain(path))


def _cifar(data: Path, name: str) -> RealData:
    digits = name.removeprefix("cifar")
    looked_for = {
        "train.npz and test.npz": (lambda folder: (folder / "train.npz").is_file(), _cifar_npz),
        f"cifar-{digits}-batches-py or cifar-{digits}-python": (
            lambda folder: (folder / ("batches.meta" if digits == "10" else "meta")).is_file(),
            _cifar_python,
        ),
        f"cifar-{digits}-batches-bin or cifar-{digits}-binary": (
            lambda folder: (folder / ("data_batch_1.bin" if digits == "10" else "train.bin")).is_file(),
            _cifar_binary,
        ),
    }
    folders = [data, *sorted(path for path in data.iterdir() if path.is_dir())]
    for is_here, read in looked_for.values():
        for folder in folders:
            if is_here(folder):
                return RealData(name, *read(folder, name))
    if archives := sorted(data.glob("*.tar.gz")):
        raise ValueError(f"{archives[0]} is still packed: tar xzf {archives[0].name} in {data}, then run again")
    raise ValueError(f"{data} holds no {name}: looked for {'; '.join(looked_for)}")


def _joined(parts: list[Split]) -> Split:
    images = [part.images for part in parts if part.images is not None]
    if len(parts) == 1:
        return parts[0]
    return Split(np.concatenate([part.labels for part in parts]), np.concatenate(images))


def _rows(flat: Any, path: Path) -> np.ndarray:
    # [N, 3072] planes -> [N, 32, 32, 3]
    flat = np.asarray(flat)
    if flat.ndim != 2 or flat.shape[1] != 3072:
        raise ValueError(f"{path} needs images as rows of 3 x 32 x 32 pixels, got {flat.dtype} {flat.shape}")
    return np.ascontiguousarray(flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _cifar_python(folder: Path, name: str) -> tuple[tuple[str, ...], Split, Split]:
    meta, train_names, test_name, label_key, names_key = (
        ("batches.meta", [f"data_batch_{k}" for k in range(1, 6)], "test_batch", "labels", "label_names")
        if name == "cifar10"
        else ("meta", ["train"], "test", "fine_labels", "fine_label_names")
    )
    names = _unpickle(_required(folder / meta)).get(names_key)
    if not (isinstance(names, list | tuple) and names and all(isinstance(one, str | bytes) for one in names)):
        raise ValueError(f"{folder / meta} has no {names_key}; is it really {name}?")
    classes = tuple(one.decode(errors="surrogateescape") if isinstance(one, bytes) else one for one in names)

    def read(paths: list[str]) -> Split:
        parts = []
        for path in [_required(folder / name) for name in paths]:
            batch = _unpickle(path)
            if missing := {label_key, "data"} - batch.keys():
                raise ValueError(f"{path} has no {sorted(missing)[0]}; is it really {name}?")
            parts.append(checked_split(_rows(batch["data"], path), batch[label_key], classes, str(path)))
        return _joined(parts)

    return classes, read(train_names), read([test_name])


def _cifar_binary(folder: Path, name: str) -> tuple[tuple[str, ...], Split, Split]:
    meta, train_names, test_name, label_bytes = (
        ("batches.meta.txt", [f"data_batch_{k}.bin" for k in range(1, 6)], "test_batch.bin", 1)
        if name == "cifar10"
        else ("fine_label_names.txt", ["train.bin"], "test.bin", 2)
    )
    classes = tuple(read_lines(_required(folder / meta), "the classes"))

    def read(paths: list[str]) -> Split:
        parts = [np.fromfile(_required(folder / path), dtype=np.uint8) for path in paths]
        for path, part in zip(paths, parts, strict=True):
            if len(part) % (3072 + label_bytes):
                raise ValueError(f"{folder / path} is truncated: {len(part)} bytes, not full records")
        splits = []
        for path, part in zip(paths, parts, strict=True):
            records, at = part.reshape(-1, 3072 + label_bytes), folder / path
            images = _rows(records[:, label_bytes:], at)
            splits.append(checked_split(images, records[:, label_bytes - 1], classes, str(at)))
        return _joined(splits)

    return classes, read(train_names), read([test_name])


def _npz(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images and labels, and the names of the classes if there are any."""
    arrays = read_npz(_required(path), ("images", "labels", "classes"), _HOLDS.format("images and labels"))
    with reading(path, _HOLDS.format("images and labels")):
        names = arrays.get("classes", np.array([]))
        if names.dtype.kind == "S":
            names = np.char.decode(names, "utf-8")
        return arrays["images"], arrays["labels"], tuple(map(str, names))


def _npz_splits(folder: Path, classes: tuple[str, ...]) -> tuple[tuple[str, ...], Split, Split]:
    """train.npz and test.npz, whose classes are those that the first names, or else `classes`."""
    paths = [folder / "train.npz", folder / "test.npz"]
    arrays = [_npz(path) for path in paths]
    names = arrays[0][2] or classes
    if arrays[1][2] not in ((), names):
        raise ValueError(f"{paths[1]} names other classes than {paths[0]}, or in another order")
    train, test = (
        checked_split(images, labels, names, str(path)) for path, (images, labels, _) in zip(paths, arrays, strict=True)
    )
    return names, train, test


def _cifar_npz(folder: Path, name: str) -> tuple[tuple[str, ...], Split, Split]:
    num_classes = int(name.removeprefix("cifar"))
    return _npz_splits(folder, CIFAR10_CLASSES if num_classes == 10 else tuple(f"{k:03d}" for k in range(num_classes)))


def _svhn(data: Path, name: str) -> RealData:
    """Cropped house numbers: train_32x32.mat and test_32x32.mat as published, or train.npz and test.npz."""
    folders = [data, *sorted(path for path in data.iterdir() if path.is_dir())]
    digits = tuple(str(digit) for digit in range(10))
    for folder in folders:
        if (folder / "train_32x32.mat").is_file():
            train, test = (_mat(_required(folder / f"{part}_32x32.mat"), digits) for part in ("train", "test"))
            return RealData(name, digits, train, test)
        if (folder / "train.npz").is_file():
            return RealData(name, *_npz_splits(folder, digits))
    raise ValueError(
        f"{data} holds no {name}: looked for train_32x32.mat and test_32x32.mat, or train.npz and test.npz"
    )


def _mat(path: Path, digits: tuple[str, ...]) -> Split:
    """X: uint8 [32, 32, 3, N]; y: [N, 1], where 10 stands for the digit 0."""
    arrays = read_mat(path, ("X", "y"), _HOLDS.format("X and y"))
    with reading(path, _HOLDS.format("X and y")):
        images, labels = arrays["X"], arrays["y"]
    if images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise ValueError(f"{path} needs X uint8 [32, 32, 3, N], got {images.dtype} {images.shape}")
    numbers = checked_labels(labels, images.shape[3], str(path))
    if (numbers == 0).any() and (numbers == 10).any():
        raise ValueError(f"{path} has labels 0 and 10; which is the digit 0?")
    numbers = np.where(numbers == 10, 0, numbers)
    return checked_split(np.ascontiguousarray(images.transpose(3, 0, 1, 2)), numbers, digits, str(path))


def _required(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    return path


# --- packed images ---------------------------------------------------------------------------------------------------


def is_packed(dataset: Dataset, data: Path) -> bool:
    """Whether the folder's train.beton and val.beton are read, not the image files that it may hold beside them."""
    if not any((data / name).is_file() for name in _BETONS):
        return False
    has_files, has_ffcv = (data / "train").is_dir(), find_spec("ffcv") is not None
    return dataset.loader in ("ffcv", "packed") or not has_files or (dataset.loader == "auto" and has_ffcv)


def _packed(data: Path, name: str) -> RealData:
    train, test = (read_beton(_required(data / part)) for part in _BETONS)
    if train.sidecar.classes != test.sidecar.classes:
        odd = sorted(set(train.sidecar.classes) ^ set(test.sidecar.classes))
        detail = f"{odd[0]!r} is in one of them only" if odd else "they are in another order"
        raise ValueError(f"{_BETONS[0]} and {_BETONS[1]} in {data} differ in their classes: {detail}")
    first, second = (Split(packed.labels, beton=packed.path, rows=np.arange(len(packed))) for packed in (train, test))
    return RealData(name, train.sidecar.classes, first, second)
