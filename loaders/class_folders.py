"""Which image is of which class: folders of classes, what is no class, and what is left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import features

from .file_names import FileNames

EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .bmp .dib .webp .ppm .pgm .pbm .pnm .tif .tiff .gif .jp2 .j2k .avif".split()
)
_CODECS = {".avif": "avif", ".jp2": "jpg_2000", ".j2k": "jpg_2000", ".webp": "webp"}
"""Codec that Pillow needs to have been built with, by the file's ending."""
_SYSTEM = frozenset(
    (
        *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini"),
    )
)
_NAMED = 3
"""Number of the left out files and folders that a sentence names."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is no part of a data set: hidden, or made by an operating system."""
    return name.startswith(".") or name.lower() in _SYSTEM


@cache
def is_read(ending: str) -> bool:
    """Whether this Pillow reads files of the ending, which is in lower case."""
    return ending in EXTENSIONS and (ending not in _CODECS or bool(features.check(_CODECS[ending])))


@dataclass
class LeftOut:
    """Files and folders that were met and not taken."""

    hidden: int = 0
    """Folders and files that are hidden, or made by an operating system; a folder counts as one."""
    others: Counter[str] = field(default_factory=Counter)
    """Files that are no images, by their endings."""
    example: dict[str, str] = field(default_factory=dict)
    """One such file of each ending."""
    loose: list[str] = field(default_factory=list)
    """Images that lie in no class folder."""
    cycles: list[str] = field(default_factory=list)
    """Links to a folder that they are in."""

    last: str = ""
    """The last file that is no image."""

    def meet(self, ending: str, path: str) -> None:
        """Counts a file that is no image."""
        self.last = path
        self.others[ending] += 1
        self.example.setdefault(ending, path)

    def said(self, root: Path) -> tuple[str, ...]:
        """A sentence for each kind of them."""
        texts = []
        if self.hidden:
            texts.append(f"left out in {root}: {self.hidden} folders or files that are hidden or an operating system's")
        if self.loose:
            texts.append(f"left out in {root}: {_some(self.loose, 'image')} in no class folder")
        if self.cycles:
            texts.append(f"left out in {root}: {_some(self.cycles, 'link')} to a folder around it")
        if self.others:
            kinds = ", ".join(f"{count} {kind or 'without an ending'}" for kind, count in self.others.most_common())
            first = self.example[self.others.most_common(1)[0][0]]
            texts.append(f"left out in {root}: {self.others.total()} files that are not read ({kinds}; {first})")
        return tuple(texts)


def _some(names: list[str], what: str) -> str:
    more = f", and {len(names) - _NAMED} more" * (len(names) > _NAMED)
    return f"{len(names)} {what}{'s' * (len(names) > 1)} ({', '.join(names[:_NAMED])}{more})"


@dataclass(frozen=True)
class ClassFolders:
    """The images in root/<class>/**: files, sorted in a class; labels int64 [N]; and classes, sorted as text."""

    root: Path
    files: FileNames
    labels: np.ndarray
    classes: tuple[str, ...]
    said: tuple[str, ...] = ()
    """Remarks on what was left out."""
    times: dict[str, int] = field(default_factory=dict)
    """The folders that were walked, "" for root and names below it, and when each had last changed before, in ns: what
    all the rest depends on."""


def folders_of(root: Path) -> list[Path]:
    """The folders in a folder, without hidden ones and those of operating systems, sorted by name.

    Raises ValueError for a link to nothing that may have been one of them.
    """
    names = []
    with os.scandir(root) as entries:
        for entry in entries:
            if not is_hidden(entry.name) and entry.is_dir():
                names.append(entry.name)
            elif entry.is_symlink() and not os.path.exists(entry.path) and not is_read(_ending(entry.name)):
                raise ValueError(f"{entry.path} is a link to what is not there: mend it, or take it away")
    return [root / name for name in sorted(names)]


def has_images(folder: Path) -> bool:
    """Whether there are images in the folder itself."""
    with os.scandir(folder) as entries:
        return any(not is_hidden(entry.name) and is_read(_ending(entry.name)) for entry in entries)


def index_classes(root: Path) -> ClassFolders:
    """The images below root's class folders, and below folders that are linked there.

    Raises ValueError if root is missing, holds no class folder, or a class holds no image.
    """
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}")
    left_out, times = LeftOut(), {"": os.stat(root).st_ctime_ns}
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if is_hidden(entry.name):
                left_out.hidden += 1
            elif is_read(_ending(entry.name)) and not entry.is_dir():
                left_out.loose.append(entry.name)
    folders = folders_of(root)
    if not folders:
        raise ValueError(f"{root} holds no class folders; expected {root}/<class>/<image>")
    names: list[str] = []
    counts: list[int] = []
    around = _around(os.path.realpath(root))
    leads_to = {folder: os.path.realpath(folder) for folder in folders}
    if wrong := next((folder for folder, real in leads_to.items() if real in around), None):
        raise ValueError(f"class folder {wrong} is a link to a folder around it")
    reals = {real: folder for folder, real in reversed(leads_to.items())}  # of several, the first
    for folder, real in leads_to.items():
        before = left_out.others.total()
        _check_of_one_class(folder, real, folder, reals)
        found = list(_images(root, folder.name, real, around, reals, left_out, times))
        if not found:
            others = left_out.others.total() - before
            has = f", but {others} files of other kinds ({left_out.last})" if others else ""
            raise ValueError(f"class folder {folder} holds no image{has}")
        names += sorted(found, key=_in_parts)
        counts.append(len(found))
    labels, classes = np.repeat(np.arange(len(counts)), counts), tuple(folder.name for folder in folders)
    return ClassFolders(root, FileNames(root, names), labels, classes, left_out.said(root), times)


def _check_of_one_class(place: Path, real: str, of: Path, reals: Mapping[str, Path]) -> None:
    """Raises ValueError for a folder of the class folder `of` that is another one, or lies in it: its images would be
    of two classes. real: where it leads to; reals: where the class folders do."""
    for folder in _around(real):
        if reals.get(folder, of) != of:
            raise ValueError(f"{place} is a link to class folder {reals[folder]}: its images would be of two classes")


def _around(folder: str) -> tuple[str, ...]:
    """A folder, and all in which it lies."""
    return (folder, *map(str, Path(folder).parents))


def _in_parts(name: str) -> str:
    """What sorts names as their parts are sorted: a/b before a.b, because no name holds what stands for the slash."""
    return name.replace("/", "\0")


def index_folder(root: Path) -> tuple[FileNames, np.ndarray, tuple[str, ...]]:
    """Files, labels and class names of `index_classes`."""
    found = index_classes(root)
    return found.files, found.labels, found.classes


def _images(
    root: Path,
    folder: str,
    real: str,
    around: tuple[str, ...],
    reals: Mapping[str, Path],
    left_out: LeftOut,
    times: dict[str, int],
) -> Iterator[str]:
    """Images in root/folder and below, in any order; no file is asked for more than its name says. The folders'
    times go to `times`."""
    inner = []
    times[folder] = os.stat(root / folder).st_ctime_ns
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                left_out.hidden += 1
            elif is_read(ending := _ending(entry.name)) and not entry.is_dir(follow_symlinks=False):
                yield f"{folder}/{entry.name}"
            elif entry.is_dir():
                inner.append((entry.name, entry.is_symlink()))
            else:
                left_out.meet(ending, entry.path)
    for name, is_link in inner:
        place = root / folder / name
        target = os.path.realpath(place) if is_link else os.path.join(real, name)
        if target == real or target in around:
            left_out.cycles.append(str(place))
        else:
            if is_link:
                _check_of_one_class(place, target, root / folder.partition("/")[0], reals)
            yield from _images(root, f"{folder}/{name}", target, (*around, real), reals, left_out, times)


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


# --- splits ----------------------------------------------------------------------------------------------------------

TRAIN = ("train", "training")
TEST = ("val", "test", "validation", "valid", "testing", "dev", "eval")
"""Names of the folders of a split; of several tests the first is read."""
_SPLIT_WORDS = frozenset("train training val valid validation test testing eval dev".split())


@dataclass(frozen=True)
class SplitFolders:
    """The folders of a data set's splits."""

    train: Path
    test: Path
    said: tuple[str, ...] = ()


def find_splits(root: Path) -> SplitFolders | None:
    """The training and the test folder in `root`; None if it holds class folders.

    Raises ValueError where only one of both is there, and where what is there is neither splits nor classes: splits of
    other names (Train, seg_train), one folder around all others, or folders that hold the same folders and no image.
    """
    folders = folders_of(root)
    by_name = {folder.name: folder for folder in folders}
    train, test = ([by_name[name] for name in names if name in by_name] for names in (TRAIN, TEST))
    if train and test:
        rest = [folder for folder in folders if folder not in (train[0], test[0])]
        taken = (*TRAIN, test[0].name)
        if alike := [folder for folder in rest if folder.name.lower() in taken]:
            raise ValueError(
                f"{root} holds {_listed([train[0], test[0], *alike])}: which are its splits? leave one of each"
            )
        said = (f"{test[0]} is the test split; not read: {_listed(rest)}",) if rest else ()
        for part in (train[0], test[0]):
            _refuse_wrapper(part, folders_of(part))
        return SplitFolders(train[0], test[0], said)
    likely = [folder for folder in folders if _SPLIT_WORDS & set(_words(folder.name))]
    if not (train or test) and likely and (len(likely) == len(folders) or not all(map(has_images, likely))):
        raise ValueError(
            f"{root} holds {_listed(folders)}, which look like splits, not classes: call them train/ and val/"
        )
    if train or test:
        raise ValueError(
            f"{root} needs both {'/ or '.join(TRAIN)}/ and one of {'/, '.join(TEST)}/, or neither; it has "
            f"{_listed(folders)}"
        )
    _refuse_wrapper(root, folders)
    inner = [] if any(map(has_images, folders)) else [[f.name for f in folders_of(folder)] for folder in folders]
    if len(inner) > 1 and len(inner[0]) > 1 and all(names == inner[0] for names in inner):
        raise ValueError(
            f"the folders of {root} ({_listed(folders)}) hold no image but the same folders each ({inner[0][0]}/, "
            f"{inner[0][1]}/ ...): splits are called train/ and val/, classes are folders of images"
        )
    return None


def _refuse_wrapper(root: Path, folders: list[Path]) -> None:
    if len(folders) == 1 and not has_images(folders[0]) and (inner := folders_of(folders[0])):
        raise ValueError(
            f"{root} holds one folder alone, {folders[0].name}/, and that holds {_listed(inner)}: is the data set "
            f"{folders[0]}?"
        )


def _words(name: str) -> list[str]:
    letters = "".join(letter if letter.isalpha() else " " for letter in name)
    return letters.lower().split()


def _listed(folders: list[Path]) -> str:
    names = [f"{folder.name}/" for folder in folders]
    return ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
