"""Data sets of image files: folders of classes with or without splits, and Tiny ImageNet as published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..files import read_lines
from ..loaders.class_folders import ClassFolders, find_splits, folders_of, has_images
from ..loaders.file_names import FileNames
from ..rng import Stream
from .kept_index import indexed
from .splits import RealData, Split, by_class


def read_tiny_imagenet(data: Path, name: str) -> RealData:
    """train/<wnid>/images/<image>, and val/images/ with a table of its classes."""
    root = next((folder for folder in (data, data / "tiny-imagenet-200") if (folder / "train").is_dir()), None)
    if root is None:
        raise ValueError(f"{data} holds no {name}: looked for train/ and val/ there and in tiny-imagenet-200/")
    found, table = indexed(root / "train"), root / "val" / "val_annotations.txt"
    index = {wnid: k for k, wnid in enumerate(found.classes)}
    if not table.is_file():
        raise ValueError(f"{table} is missing")
    test_files: list[str] = []
    test_labels: list[int] = []
    for line in read_lines(table, "the classes of val/"):
        file, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0]
        if wnid not in index:
            raise ValueError(f"val_annotations.txt names class {wnid!r}, which train/ does not have")
        test_files.append(file)
        test_labels.append(index[wnid])
    test = Split(np.array(test_labels, dtype=np.int64), files=FileNames(root / "val" / "images", test_files))
    return RealData(name, found.classes, Split(found.labels, files=found.files), test, found.said)


def index_splits(data: Path) -> tuple[ClassFolders, ClassFolders] | None:
    """The training and the test images of a folder that has splits, of the same classes; None if it has none.

    Raises ValueError if their classes differ, or as `find_splits`.
    """
    splits = find_splits(data)
    if splits is None:
        return None
    if not folders_of(splits.test) and has_images(splits.test):
        raise ValueError(f"{splits.test} holds images without class folders; sort them into {splits.test}/<class>/")
    train, test = indexed(splits.train), indexed(splits.test)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))[0]
        raise ValueError(
            f"{splits.train.name}/ and {splits.test.name}/ differ in their classes: {odd!r} is in one of them only"
        )
    return train, replace(test, said=(*test.said, *splits.said))


def read_folders(data: Path, name: str) -> RealData:
    """<split>/<class>/**/<image>, or <class>/**/<image>, a fixed fifth of each class held out for testing."""
    if (splits := index_splits(data)) is not None:
        train, test = (Split(found.labels, files=found.files) for found in splits)
        return RealData(name, splits[0].classes, train, test, splits[0].said + splits[1].said)
    found = indexed(data)
    whole = Split(found.labels, files=found.files)
    order = Stream(0, "datasets/hold-out").permutation(len(found.files))
    held: list[int] = []
    for of_class, mine in zip(found.classes, by_class(order, found.labels, len(found.classes)), strict=True):
        if len(mine) < 2:
            raise ValueError(f"class {of_class!r} has {len(mine)} image; a train and a test image are needed")
        held += list(mine[: max(1, len(mine) // 5)])
    is_test = np.zeros(len(found.files), dtype=bool)
    is_test[held] = True
    train, test = (whole.take(np.flatnonzero(chosen)) for chosen in (~is_test, is_test))
    return RealData(name, found.classes, train, test, found.said)
