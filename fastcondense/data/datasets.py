"""Real data sets as published: labels, class order, and images in memory or as files.

Class order is part of a data set: label k means ``classes[k]`` in everything that is made from it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .. import restricted_pickle
from ..files import read_text
from ..loaders.beton import read_beton
from ..loaders.folder import EXTENSIONS, index_folder
from ..loaders.reading import reading
from ..recipe.settings import Dataset
from ..rng import Stream
from .array_files import read_mat, read_npz

_HOLDS = "{{path}} must hold the arrays {}: {{error}}"
_BETONS = ("train.beton", "val.beton")
CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())


@dataclass(frozen=True, eq=False)
class Split:
    """Labels int64 [N], and images uint8 [N, H, W, 3] in memory, or N files, or N rows of a .beton file."""

    labels: np.ndarray
    images: np.ndarray | None = None
    files: tuple[Path, ...] = ()
    beton: Path | None = None
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, ids: np.ndarray) -> Split:
        """The samples `ids`, in that order."""
        images, rows = (None if part is None else part[ids] for part in (self.images, self.rows))
        files = tuple(self.files[i] for i in ids) if self.files else ()
        return Split(self.labels[ids], images, files, self.beton, rows)


@dataclass(frozen=True)
class RealData:
    """A training and a test split over the same classes."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split

    def check_counts(self, needed: int, purpose: str) -> None:
        """Raises ValueError if a class has fewer training images than `needed`."""
        counts = np.bincount(self.train.labels, minlength=len(self.classes))
        poorest = int(counts.argmin())
        if counts[poorest] < needed:
            raise ValueError(
                f"class {self.classes[poorest]!r} has {counts[poorest]} training images, but {purpose} needs {needed}"
            )


def load(dataset: Dataset, data: Path | None) -> RealData:
    """Reads the data set that the recipe names from the folder `data` (digits needs none).

    Raises ValueError that says what was looked for where.
    """
    if dataset.name == "digits":
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
            "tiny-imagenet": _tiny_imagenet,
            "folder": _folder,
        }
        real = reader[dataset.name](data, dataset.name)
    return _only(real, dataset.classes) if dataset.classes else real


def _only(real: RealData, classes: tuple[str, ...]) -> RealData:
    if len(set(classes)) < len(classes):
        raise ValueError(f"dataset.classes names a class twice: {', '.join(classes)}")
    missing = [name for name in classes if name not in real.classes]
    if missing:
        raise ValueError(f"dataset.classes names {missing[0]!r}, which {real.name} does not have")
    new_label = np.full(len(real.classes), -1)
    new_label[[real.classes.index(name) for name in classes]] = np.arange(len(classes))

    def keep(split: Split) -> Split:
        kept = split.take(np.flatnonzero(new_label[split.labels] >= 0))
        return replace(kept, labels=new_label[kept.labels])

    return RealData(real.name, classes, keep(real.train), keep(real.test))


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
                classes, train, test = read(folder, name)
                if max(train.labels.max(), test.labels.max()) >= len(classes):
                    raise ValueError(f"{folder} has labels beyond its {len(classes)} classes; is it really {name}?")
                return RealData(name, classes, train, test)
    if archives := sorted(data.glob("*.tar.gz")):
        raise ValueError(f"{archives[0]} is still packed: tar xzf {archives[0].name} in {data}, then run again")
    raise ValueError(f"{data} holds no {name}: looked for {'; '.join(looked_for)}")


def _rows(flat: np.ndarray) -> np.ndarray:
    # [N, 3072] planes -> [N, 32, 32, 3]
    return np.ascontiguousarray(flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _cifar_python(folder: Path, name: str) -> tuple[tuple[str, ...], Split, Split]:
    meta, train_names, test_name, label_key, names_key = (
        ("batches.meta", [f"data_batch_{k}" for k in range(1, 6)], "test_batch", "labels", "label_names")
        if name == "cifar10"
        else ("meta", ["train"], "test", "fine_labels", "fine_label_names")
    )
    classes = tuple(_unpickle(_required(folder / meta)).get(names_key, ()))
    if not classes:
        raise ValueError(f"{folder / meta} has no {names_key}; is it really {name}?")

    def read(paths: list[str]) -> Split:
        batches = [_unpickle(_required(folder / path)) for path in paths]
        for path, batch in zip(paths, batches, strict=True):
            if missing := {label_key, "data"} - batch.keys():
                raise ValueError(f"{folder / path} has no {sorted(missing)[0]}; is it really {name}?")
        for path, batch in zip(paths, batches, strict=True):
            with reading(folder / path, "{path} is not a CIFAR batch: {error}"):
                batch |= {label_key: np.asarray(batch[label_key], dtype=np.int64), "data": np.asarray(batch["data"])}
                if batch["data"].dtype != np.uint8 or batch["data"].shape != (len(batch[label_key]), 3072):
                    raise ValueError(f"{batch['data'].dtype} {batch['data'].shape} of {len(batch[label_key])} images")
        labels = np.concatenate([batch[label_key] for batch in batches])
        return Split(labels, _rows(np.concatenate([batch["data"] for batch in batches])))

    return classes, read(train_names), read([test_name])


def _cifar_binary(folder: Path, name: str) -> tuple[tuple[str, ...], Split, Split]:
    meta, train_names, test_name, label_bytes = (
        ("batches.meta.txt", [f"data_batch_{k}.bin" for k in range(1, 6)], "test_batch.bin", 1)
        if name == "cifar10"
        else ("fine_label_names.txt", ["train.bin"], "test.bin", 2)
    )
    classes = tuple(line for line in read_text(_required(folder / meta)).split("\n") if line)

    def read(paths: list[str]) -> Split:
        parts = [np.fromfile(_required(folder / path), dtype=np.uint8) for path in paths]
        for path, part in zip(paths, parts, strict=True):
            if len(part) % (3072 + label_bytes):
                raise ValueError(f"{folder / path} is truncated: {len(part)} bytes, not full records")
        records = np.concatenate(parts).reshape(-1, 3072 + label_bytes)
        return Split(records[:, label_bytes - 1].astype(np.int64), _rows(records[:, label_bytes:]))

    return classes, read(train_names), read([test_name])


def _npz(path: Path) -> tuple[Split, tuple[str, ...]]:
    """Images and labels, and the names of the classes if there are any."""
    arrays = read_npz(_required(path), ("images", "labels", "classes"), _HOLDS.format("images and labels"))
    with reading(path, _HOLDS.format("images and labels")):
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)
        classes = tuple(str(name) for name in arrays.get("classes", ()))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != len(labels):
        raise ValueError(
            f"{path} needs images uint8 [N, H, W, 3] and as many labels, got {images.dtype} {images.shape} "
            f"and {len(labels)}"
        )
    return Split(labels, images), classes


def _cifar_npz(folder: Path, name: str) -> tuple[tuple[str, ...], Split, Split]:
    train, classes = _npz(folder / "train.npz")
    test, _ = _npz(folder / "test.npz")
    if not classes:
        num_classes = int(name.removeprefix("cifar"))
        classes = CIFAR10_CLASSES if num_classes == 10 else tuple(f"{k:03d}" for k in range(num_classes))
    return classes, train, test


def _svhn(data: Path, name: str) -> RealData:
    """Cropped house numbers: train_32x32.mat and test_32x32.mat as published, or train.npz and test.npz."""
    folders = [data, *sorted(path for path in data.iterdir() if path.is_dir())]
    digits = tuple(str(digit) for digit in range(10))
    for folder in folders:
        if (folder / "train_32x32.mat").is_file():
            return RealData(
                name, digits, *(_mat(_required(folder / f"{part}_32x32.mat")) for part in ("train", "test"))
            )
        if (folder / "train.npz").is_file():
            return RealData(name, digits, *(_npz(folder / f"{part}.npz")[0] for part in ("train", "test")))
    raise ValueError(
        f"{data} holds no {name}: looked for train_32x32.mat and test_32x32.mat, or train.npz and test.npz"
    )


def _mat(path: Path) -> Split:
    """X: uint8 [32, 32, 3, N]; y: [N, 1], where 10 stands for the digit 0."""
    arrays = read_mat(path, ("X", "y"), _HOLDS.format("X and y"))
    with reading(path, _HOLDS.format("X and y")):
        images, labels = arrays["X"], arrays["y"].reshape(-1).astype(np.int64) % 10
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
        raise ValueError(f"{path} needs X uint8 [32, 32, 3, N] and as many labels, got {images.dtype} {images.shape}")
    return Split(labels, np.ascontiguousarray(images.transpose(3, 0, 1, 2)))


def _required(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    return path


# --- image files -----------------------------------------------------------------------------------------------------


def _tiny_imagenet(data: Path, name: str) -> RealData:
    root = next((folder for folder in (data, data / "tiny-imagenet-200") if (folder / "train").is_dir()), None)
    if root is None:
        raise ValueError(f"{data} holds no {name}: looked for train/ and val/ there and in tiny-imagenet-200/")
    files, labels, classes = index_folder(root / "train")
    index = {wnid: k for k, wnid in enumerate(classes)}
    test_files: list[Path] = []
    test_labels: list[int] = []
    for line in read_text(_required(root / "val" / "val_annotations.txt")).splitlines():
        file, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0]
        if wnid not in index:
            raise ValueError(f"val_annotations.txt names class {wnid!r}, which train/ does not have")
        test_files.append(root / "val" / "images" / file)
        test_labels.append(index[wnid])
    test = Split(np.array(test_labels, dtype=np.int64), files=tuple(test_files))
    return RealData(name, classes, Split(labels, files=tuple(files)), test)


def _folder(data: Path, name: str) -> RealData:
    test_root = next((data / part for part in ("val", "test", "validation") if (data / part).is_dir()), None)
    if (data / "train").is_dir() and test_root is not None:
        files, labels, classes = index_folder(data / "train")
        if not any(path.is_dir() for path in test_root.iterdir()) and any(
            path.suffix.lower() in EXTENSIONS for path in test_root.iterdir()
        ):
            raise ValueError(f"{test_root} holds images without class folders; sort them into {test_root}/<class>/")
        test_files, test_labels, test_classes = index_folder(test_root)
        if classes != test_classes:
            odd = sorted(set(classes) ^ set(test_classes))[0]
            raise ValueError(f"train/ and {test_root.name}/ differ in their classes: {odd!r} is in one of them only")
        return RealData(name, classes, Split(labels, files=tuple(files)), Split(test_labels, files=tuple(test_files)))
    if (data / "train").is_dir() or test_root is not None:
        raise ValueError(f"{data} needs both train/ and one of val/, test/, validation/, or neither")
    # One folder of classes: a fixed fifth of each class is held out for testing.
    files, labels, classes = index_folder(data)
    whole = Split(labels, files=tuple(files))
    order = Stream(0, "datasets/hold-out").permutation(len(files))
    held: list[int] = []
    for label in range(len(classes)):
        mine = order[labels[order] == label]
        if len(mine) < 2:
            raise ValueError(f"class {classes[label]!r} has {len(mine)} image; a train and a test image are needed")
        held += list(mine[: max(1, len(mine) // 5)])
    is_test = np.zeros(len(files), dtype=bool)
    is_test[held] = True
    return RealData(name, classes, whole.take(np.flatnonzero(~is_test)), whole.take(np.flatnonzero(is_test)))


# --- packed images ---------------------------------------------------------------------------------------------------


def is_packed(dataset: Dataset, data: Path) -> bool:
    """Whether the folder's train.beton and val.beton are read, not the image files that it may hold beside them."""
    if not any((data / name).is_file() for name in _BETONS):
        return False
    has_files, has_ffcv = (data / "train").is_dir(), find_spec("ffcv") is not None
    return dataset.loader == "ffcv" or not has_files or (dataset.loader == "auto" and has_ffcv)


def _packed(data: Path, name: str) -> RealData:
    train, test = (read_beton(_required(data / part)) for part in _BETONS)
    if train.sidecar.classes != test.sidecar.classes:
        odd = sorted(set(train.sidecar.classes) ^ set(test.sidecar.classes))
        detail = f"{odd[0]!r} is in one of them only" if odd else "they are in another order"
        raise ValueError(f"{_BETONS[0]} and {_BETONS[1]} in {data} differ in their classes: {detail}")
    splits = (Split(packed.labels, beton=packed.path, rows=np.arange(len(packed))) for packed in (train, test))
    return RealData(name, train.sidecar.classes, *splits)
