"""Condensed sets that others published: image folders, parquet files, tensors, with their class order.

Label k of a set is the class that its name or number says, never the place that a sort gives its folder: of "0", "1",
"10", "2" the third is class 10.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import vision
from ..data.sources import decoding_threads
from ..files import read_json
from ..loaders.class_folders import folders_of, has_images, index_classes
from ..loaders.folder import ImageFile
from ..loaders.reading import naming
from ..recipe.settings import Dataset
from . import parquet_sets, tensor_sets
from .condensed import CondensedSet
from .listing import Listing, Picture, decode
from .stored_images import Spool, StoredImages

CLASSES_FILE = "classes.json"
_NUMBERED = re.compile(r"(?:new|class)?_?(\d+)")  # new000 (SRe2L, CDA, EDC, FADRM), 00000 (RDED, CIM), 0
_NUMBERED_FILE = re.compile(r"class(\d+)_id\d+")
_PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z")


@dataclass(frozen=True)
class PublishedSet:
    """Images that somebody published, as a condensed set, and what they were."""

    name: str
    """What they are called from now on: their path, or their name on the Hub."""
    condensed: CondensedSet
    layout: str
    """Layout and file format, in words."""
    sha256: str
    """SHA-256 of the pixels, uint8 [classes, ipc, 3, S, S]."""
    said: tuple[str, ...]
    """Remarks that a reader should know: images and classes that are left out, values that are clamped."""


def read_published(
    path: Path, classes: Sequence[str], ipc: int, dataset: Dataset, name: str = "", folder: Path | None = None
) -> PublishedSet:
    """The first `ipc` images of each class, in class order. name: what they are called, if that is not their path;
    folder: on whose disk their pixels lie until nobody holds them, if not where temporary files do.

    Raises ValueError that says what is wrong: a class that is missing or has too few images, another size than
    dataset.image_size (nothing is resized), a file that cannot be read.
    """
    listing = list_images(path, len(classes), dataset)
    if listing.is_numbered and (listing.labels.min(), listing.labels.max()) == (1, len(classes)):
        raise ValueError(f"{path} has class numbers from 1 to {len(classes)}; they must count from 0")
    with naming(path, "{path}: {error}"):
        order, said = class_order(listing.names, classes, listing.is_numbered, listing.stated)
    members = [np.flatnonzero(listing.labels == row) for row in order]
    counts = [len(ids) for ids in members]
    poorest, richest = int(np.argmin(counts)), int(np.argmax(counts))
    if not counts[poorest]:
        some = sum(count > 0 for count in counts)
        raise ValueError(f"{path} has no image of class {classes[poorest]!r}; {some} classes have some")
    if counts[poorest] < ipc:
        raise ValueError(
            f"{path} has {counts[poorest]} images of class {classes[poorest]!r} and {counts[richest]} of "
            f"{classes[richest]!r}, but ipc is {ipc}; --ipc {counts[poorest]} takes as many of each"
        )
    if counts[poorest] != counts[richest]:
        said += (
            f"class {classes[poorest]!r} has {counts[poorest]} images and {classes[richest]!r} {counts[richest]}: the "
            f"first {ipc} of each class are taken",
        )
    elif counts[poorest] > ipc:
        said += (f"of {counts[poorest]} images a class the first {ipc} are taken",)
    size, formats = dataset.image_size, Counter[str]()
    rows = torch.arange(len(classes) * ipc).view(len(classes), ipc)
    spool = Spool(folder, rows.numel(), (3, size, size))
    for picture in listing.read(np.concatenate([ids[:ipc] for ids in members]), size):
        spool.put(picture.place, picture.pixels)
        formats[picture.format] += 1
    how = ", ".join(f"{count} {name}" if len(formats) > 1 else name for name, count in formats.most_common())
    condensed = CondensedSet(StoredImages(spool, torch.zeros_like(rows), rows), tuple(classes))
    return PublishedSet(
        name or str(path.resolve()),
        condensed,
        f"{listing.layout}, {how}" + ", which is lossy" * ("JPEG" in formats),
        condensed.sha256,
        (*listing.said, *said),
    )


def list_images(path: Path, num_classes: int, dataset: Dataset) -> Listing:
    """Images published at `path`: files of tensors or of parquet, a folder of them, or a folder of class folders."""
    if not path.exists():
        raise ValueError(f"there is no file or folder {path}")
    if path.suffix.lower() in _PACKED:
        raise ValueError(f"{path} is still packed; unpack it and give the folder")
    if files := parquet_sets.find(path):
        return parquet_sets.list_rows(files, decoding_threads(dataset))
    if files := tensor_sets.find(path):
        return tensor_sets.list_tensors(files, num_classes, dataset)
    if path.is_file():
        raise ValueError(
            f"{path} is no image set: a folder is needed, or a file .parquet, .pt, .pth, .safetensors or .npz"
        )
    return _list_folder(path, decoding_threads(dataset))


def _list_folder(root: Path, workers: int) -> Listing:
    """<class>/<image> in `_inside` of the root. Folders are numbers or names; classes.json renames them."""
    inside = _inside(root)
    found = index_classes(inside)
    labels, folders = found.labels, found.classes
    order = sorted(range(len(labels)), key=lambda k: (labels[k], _by_numbers(found.files.names[k])))
    files = found.files.take(order)
    names, layout, stated = folders, "folders of class names", _stated(files, labels, folders)
    given = next((path for path in (inside / CLASSES_FILE, root / CLASSES_FILE) if path.is_file()), None)
    if given is not None:
        tree = read_json(given)
        if not isinstance(tree, dict) or (missing := sorted(set(folders) - tree.keys())):
            what = f", which lacks {missing[0]!r}" if isinstance(tree, dict) else ""
            raise ValueError(f"{given} needs the class of each folder, {{folder: class}}{what}")
        names, layout, stated = tuple(str(tree[k]) for k in folders), f"folders named in {CLASSES_FILE}", ()
    elif all(_NUMBERED.fullmatch(name) for name in names):
        layout = f"numbered folders ({names[0]})"

    def read(ids: np.ndarray, size: int = 0) -> Iterator[Picture]:
        with ThreadPoolExecutor(max(1, workers)) as pool:
            yield from decode(range(len(ids)), lambda place: ImageFile.read(files[ids[place]]), pool, size)

    return Listing(layout, names, labels, read, found.said, stated=stated)


def _by_numbers(name: str) -> list[Any]:
    """What sorts names as their numbers count: 2.png before 10.png."""
    return [int(part) if k % 2 else part for k, part in enumerate(re.split("([0-9]+)", name))]


def _inside(root: Path) -> Path:
    """The folder of class folders: root/train, the one folder around them (MGD3's dataset_0, CoDA's generated_images),
    or root. Raises ValueError if root holds several such folders.
    """
    train, folders = root / "train", folders_of(root)
    if train.is_dir() and not has_images(train):  # a class may be called train
        return train
    is_around = not any(map(has_images, folders)) and all(sum(map(has_images, folders_of(one))) > 1 for one in folders)
    if is_around and len(folders) > 1:
        raise ValueError(f"{root} holds several sets, {folders[0].name}/ and {folders[1].name}/ among them; give one")
    return folders[0] if is_around and folders else root


def _stated(files: Sequence[Path], labels: np.ndarray, folders: Sequence[str]) -> tuple[int | None, ...]:
    """The number that the files of each class state, if they all state one. Raises ValueError if they differ in one."""
    matches = [_NUMBERED_FILE.match(file.name) for file in files]
    numbers = [int(match[1]) for match in matches if match]
    if len(numbers) < len(files):
        return ()
    usual: dict[int, int] = {}
    for label, folder in enumerate(folders):
        mine = np.flatnonzero(labels == label).tolist()
        own, found = _NUMBERED.fullmatch(folder), Counter(numbers[k] for k in mine)
        usual[label] = found.most_common(1)[0][0]
        if len(found) > 1:
            right = int(own[1]) if own else usual[label]
            odd = next(files[k] for k in mine if numbers[k] != right)
            raise ValueError(f"{odd} is of another class than its folder says")
    return tuple(usual.values())


# --- class order -----------------------------------------------------------------------------------------------------


def class_order(
    names: Sequence[str], classes: Sequence[str], is_numbered: bool = False, stated: Sequence[int | None] = ()
) -> tuple[list[int], tuple[str, ...]]:
    """The place of each of the data set's classes among a published set's, and what should be said of it.

    By name if the names are the data set's. By number if they are numbers ("new003", "00003", "3"), which mean places
    in the data set's order, or in ImageNet's if there are 1000 of them for a data set of wnids. By ImageNet's words for
    its wnids. Numbers that are names of the data set, too, are names, unless the set has numbers alone (`is_numbered`)
    or its files state places (`stated`: the number that those of each class state); where both differ, it is said.

    Raises ValueError if the classes do not line up.
    """
    numbers = [int(match[1]) for name in names if (match := _NUMBERED.fullmatch(name))]
    wnids, words = _imagenet() if len(names) == 1000 else ([], [])
    is_imagenet, said = set(classes) <= set(wnids), list[str]()
    are_names = set(classes) <= set(names) and not is_numbered
    if len(numbers) == len(names):
        are_names = _are_names(names, numbers, classes, are_names, stated)
        if all(name.isdecimal() for name in classes) and [int(name) for name in classes] != list(range(len(classes))):
            how = "names of its classes" if are_names else "places in the order of its classes"
            said.append(f"the data set's classes are numbers, and those of the set are taken as {how}")
    if are_names:
        meant = list(names)
    elif len(numbers) == len(names):
        meant = _by_number(numbers, wnids if is_imagenet else classes)
    elif is_imagenet and _are_words(names, words):
        meant = wnids
    else:
        missing = next(name for name in classes if name not in names)
        near = difflib.get_close_matches(missing, [name for name in names if name not in classes] or names, 1, 0.0)
        raise ValueError(
            f"the set has no class {missing!r} of the data set; it has {len(names)}, among them {near[0]!r}"
        )
    if twice := [name for name, count in Counter(meant).items() if count > 1]:
        raise ValueError(f"the set has class {twice[0]!r} twice")
    if len(names) > len(classes):
        said.append(f"{len(names) - len(classes)} classes of the set are not in the data set, and left out")
    return [meant.index(name) for name in classes], tuple(said)


def _are_names(
    names: Sequence[str], numbers: Sequence[int], classes: Sequence[str], are_names: bool, stated: Sequence[int | None]
) -> bool:
    """Whether numbers are names, as they may be, or places. Raises ValueError if the files state neither."""
    if not stated:
        return are_names
    place = {name: k for k, name in enumerate(classes)}
    if are_names and all(place.get(name, number) == number for name, number in zip(names, stated, strict=True)):
        return True
    if odd := [k for k, number in enumerate(stated) if number != numbers[k]]:
        name, number = names[odd[0]], stated[odd[0]]
        raise ValueError(f"the files in {name} are of another class than its folder says: they name number {number}")
    return False


def _by_number(numbers: Sequence[int], numbered: Sequence[str]) -> list[str]:
    """The classes that the numbers are places of. Raises ValueError if some is missing, twice, or beyond them."""
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"class {Counter(numbers).most_common(1)[0][0]} of the set is there twice")
    if absent := sorted(set(range(len(numbered))) - set(numbers)):
        hint = ": do its numbers count from 1?" if absent == [0] and max(numbers) == len(numbered) else ""
        raise ValueError(f"the set has no class {absent[0]} ({numbered[absent[0]]!r}), but the data set has{hint}")
    if len(numbers) > len(numbered):
        raise ValueError(f"the set has {len(numbers)} numbered classes, the data set {len(numbered)}; name them")
    return [numbered[number] for number in numbers]


@functools.cache
def _imagenet() -> tuple[list[str], list[str]]:
    """ImageNet's wnids in its order, and what its classes are called: "tench, Tinca tinca"."""
    info = vision.timm.data.ImageNetInfo()
    return list(info.label_names()), list(info.label_descriptions())


def _are_words(names: Sequence[str], words: Sequence[str]) -> bool:
    """Whether the names are those words in their order, or what is before a first comma."""
    plain = [name.replace("_", " ").lower() for name in names]
    return all(name in (word.lower(), word.lower().split(", ")[0]) for name, word in zip(plain, words, strict=True))
