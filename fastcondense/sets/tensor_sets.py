"""Image sets as tensors, in files of DC-BENCH, MTT, DATM, DD-Ranking, CIM, KIP and our own: .pt, .safetensors, .npz."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.array_files import read_npz
from ..data.arrays import checked_labels
from ..data.real import Normalization
from ..files import read_json
from ..loaders.reading import naming, reading
from ..recipe.settings import Dataset, PixelStatistics
from ..records import parse_json
from ..tensor_files import read_checkpoint, read_tensors, write_checkpoint, write_tensors
from .condensed import CondensedSet
from .listing import Listing, Picture, check_size, numbers_as_names
from .parts import in_order

SUFFIXES = (".pt", ".pth", ".safetensors", ".npz")
_IMAGES = ("images", "image", "image_syn", "data", "x")
_LABELS = ("labels", "label", "label_syn", "targets", "y")
_BESIDE = frozenset(("label", "labels", "lr", "lrs", "softlabels"))
"""Words in the names of files that lie beside images."""
_WHITENED = frozenset(("zca", "whitened", "whitening"))
"""Words in the names of files of whitened images, such as KIP's, which do not say by what they were whitened."""
ABOUT = "ddranking.json"
"""File in which our export for DD-Ranking describes its tensors: classes in their order, mean and deviation."""
_STATISTICS = "pixel_statistics"
"""Key under which our own exports say by which mean and deviation they are normalised."""
_UNIT = (-0.25, 1.25)
"""Images of [0, 1] that were optimised without a bound; normalised ones go far beyond."""
_SYMMETRIC = (0.98, 1.001)
"""Where both ends of values are that look like pixels in [-1, 1], as generators give them."""
_BLOCK = 8_000_000
"""Values that are converted at a time."""
_MOST_CLAMPED = 0.2
"""Share of normalised values beyond black and white; more come from another normalisation."""


@dataclass(frozen=True)
class _Found:
    """Images, and what a file says of their classes."""

    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None
    pixel_statistics: PixelStatistics | None = None
    """Mean and deviation that the images are normalised by, as the file says."""


def find(path: Path) -> list[Path]:
    """The files of image tensors that are `path`, or in it: one, or the numbered parts of one, in order.

    Raises ValueError if a folder has several that are not numbered so.
    """
    if path.is_file():
        return [path] if path.suffix.lower() in SUFFIXES else []
    stems = {file.stem: file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES}
    files = [file for stem, file in stems.items() if not _BESIDE & _words(stem)]
    return in_order(files)


def _words(stem: str) -> set[str]:
    return set(re.split(r"[^a-z]+", stem.lower()))


def _check_parts(parts: Sequence[_Found], files: Sequence[Path], num_classes: int) -> None:
    """Raises ValueError unless files that are numbered as parts of one set have images that can be parts of one."""
    if len(parts) == 1:
        return
    listed = ", ".join(file.name for file in files[:3]) + f" and {len(files) - 3} more" * (len(files) > 3)
    kinds = {
        (part.images.shape[1:], part.images.dtype, part.labels is None, part.classes, part.pixel_statistics)
        for part in parts
    }
    if len(kinds) > 1:
        raise ValueError(f"{files[0].parent}: {listed} do not belong together: their shapes, types or classes differ")
    has_count, given = "-of-" in files[0].stem, [part.labels for part in parts if part.labels is not None]
    classes = [set(numbers.flatten().tolist()) for numbers in given]
    could_be_sets = (
        all(mine == classes[0] for mine in classes)
        if given
        else all(len(part.images) % num_classes == 0 for part in parts)
    )
    if could_be_sets and not has_count:
        raise ValueError(
            f"{files[0].parent}: each of {listed} may be a set by itself, such as one image set at several times: "
            "name one of them (parts of one set are called <name>-00000-of-00002)"
        )


def list_tensors(files: Sequence[Path], num_classes: int, dataset: Dataset) -> Listing:
    """The images of all files as uint8; labels beside them, or in a file of their own (images.pt, labels.pt).

    Without labels images are class by class, as many of each of `num_classes` (DD-Ranking). Normalised values go back
    to pixels by dataset.mean and dataset.std. Raises ValueError for anything else.
    """
    with reading(files[0]):
        return _listed(files, num_classes, dataset)


def _listed(files: Sequence[Path], num_classes: int, dataset: Dataset) -> Listing:
    parts = []
    for file in files:
        with reading(file):
            parts.append(_read(file))
    _check_parts(parts, files, num_classes)
    about = files[0].with_name(ABOUT)
    beside = read_json(about) if about.is_file() and len(files) == 1 else {}
    stated = parts[0].pixel_statistics
    if {"mean", "std"} <= beside.keys():
        stated = _pixel_statistics([beside["mean"], beside["std"]], about)
    images, said = to_pixels([part.images for part in parts], dataset, files[0], stated)
    if parts[0].labels is None:
        if len(images) % num_classes:
            raise ValueError(f"{files[0]} has no labels, and its {len(images)} images are not of {num_classes} classes")
        labels = torch.arange(num_classes).repeat_interleave(len(images) // num_classes)
        said += ("there are no labels: images are taken class by class",)
    else:
        labels = torch.cat([part.labels for part in parts if part.labels is not None])
        if labels.dim() == 2 and labels.is_floating_point():
            num_classes = max(num_classes, labels.shape[1])
            if not bool(labels.isfinite().all()):
                raise ValueError(f"{files[0]} has soft labels that are not finite")
            said += ("soft labels of the file are not used; an image is of the class with the largest",)
            labels = labels.argmax(1)
    numbers = checked_labels(labels.numpy(), len(images), str(files[0]))
    given = parts[0].classes or (tuple(map(str, beside["classes"])) if "classes" in beside else None)
    names = given or numbers_as_names(max(num_classes, int(numbers.max()) + 1))
    if numbers.min() < 0 or numbers.max() >= len(names):
        raise ValueError(
            f"{files[0]} needs class numbers from 0 to {len(names) - 1}, got {numbers.min()} to {numbers.max()}"
        )

    def read(ids: np.ndarray, size: int = 0) -> Iterator[Picture]:
        if size and len(ids):
            check_size(f"image {ids[0]} of {files[0]}", images.shape[3], images.shape[2], size)
        for place, sample in enumerate(ids.tolist()):
            yield Picture(place, images[sample], f"image {sample} of {files[0]}", str(parts[0].images.dtype)[6:])

    return Listing(f"tensors ({', '.join(file.name for file in files)})", names, numbers, read, said, given is None)


def to_pixels(
    parts: Sequence[Tensor], dataset: Dataset, path: Path, stated: PixelStatistics | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """uint8 images of any usual values, and what was done; rounded, not truncated.

    stated: mean and deviation that they are normalised by, if that is known. A few images are converted at a time.
    Raises ValueError for values that are no pixels, in [0, 255] or [0, 1], nor normalised ones.
    """
    kind = parts[0].dtype
    if kind.is_complex:
        raise ValueError(f"{path} has complex values, which are no pixels")
    if kind == torch.bool:
        return 255 * torch.cat(list(parts)).to(torch.uint8), ("values of true and false: taken as white and black",)
    binary = f"{path} has whole numbers of 0 and 1 alone, nearly black; are they pixels in [0, 1]? save them 255-fold"
    if kind == torch.uint8:
        if max(int(part.max()) for part in parts) <= 1:
            raise ValueError(binary)
        return parts[0] if len(parts) == 1 else torch.cat(list(parts)), ()
    low, high = math.inf, -math.inf
    for values in _blocks(parts):
        if not bool(values.isfinite().all()):
            raise ValueError(f"{path} has values that are not finite")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    if not kind.is_floating_point and high <= 1:
        raise ValueError(binary)
    where = f"values from {low:.3g} to {high:.3g}"
    if stated is None and low < 0 and _WHITENED & _words(path.stem):
        raise ValueError(
            f"{path} has {where}, whitened as its name says, and nothing says by what; undo that with the code that "
            "made them, and save pixels in [0, 1]"
        )
    if not kind.is_floating_point or (stated is None and low >= 0 and high > 8):
        if low < 0 or high > 255:
            raise ValueError(f"{path} has {where}, which are no pixels")
        return _converted(parts, Tensor.round), (f"{where}: taken as pixels in [0, 255]",)
    if stated is None and _UNIT[0] <= low and high <= _UNIT[1]:
        share = _share(parts, lambda values: (values < 0) | (values > 1))
        text = f"{where}: taken as pixels in [0, 1]{_clamped(share)}"
        return _converted(parts, lambda values: (255 * values).clamp(0, 255).round()), (text,)
    is_symmetric = all(_SYMMETRIC[0] <= end <= _SYMMETRIC[1] for end in (-low, high))
    if stated is None and is_symmetric and {*dataset.mean, *dataset.std} != {0.5}:
        raise ValueError(
            f"{path} has {where}: pixels in [-1, 1], or normalised by dataset.mean and dataset.std? save them in [0, 1]"
        )
    mean, std = stated or (dataset.mean, dataset.std)
    normalize = Normalization.of(replace(dataset, mean=mean, std=std), torch.device("cpu"))
    black, white = (bound[:, None, None] for bound in normalize.range())
    step = (white - black) / 255
    share = _share(parts, lambda values: (values < black - step / 2) | (values > white + step / 2))
    if share > _MOST_CLAMPED:
        raise ValueError(
            f"{path} has {where}, {100 * share:.0f} % of them beyond black and white: they were not normalised by "
            f"{'the mean and std that it states' if stated else 'dataset.mean and dataset.std'} (whitened images "
            "cannot be read)"
        )
    text = f"{where}: taken as normalised by mean {mean} and deviation {std}{_clamped(share)}"
    return _converted(parts, lambda values: normalize.pixels(values.float())), (text,)


def _blocks(parts: Sequence[Tensor]) -> Iterator[Tensor]:
    """The images as float32, or float64 as they are, a few after the other."""
    for part in parts:
        for block in part.split(max(1, _BLOCK // math.prod(part.shape[1:]))):
            yield block if block.dtype == torch.float64 else block.float()


def _share(parts: Sequence[Tensor], condition: Callable[[Tensor], Tensor]) -> float:
    return sum(int(condition(values).sum()) for values in _blocks(parts)) / sum(part.numel() for part in parts)


def _converted(parts: Sequence[Tensor], convert: Callable[[Tensor], Tensor]) -> Tensor:
    images = torch.empty(sum(map(len, parts)), *parts[0].shape[1:], dtype=torch.uint8)
    begin = 0
    for values in _blocks(parts):
        images[begin : begin + len(values)] = convert(values)
        begin += len(values)
    return images


def _pixel_statistics(stated: Any, path: Path) -> PixelStatistics:
    """A stated mean and deviation. Raises ValueError if they are others than three finite numbers each, the latter
    above 0."""
    with naming(path):
        mean, std = np.array(stated, dtype=np.float64).reshape(2, 3).tolist()
        if min(std) <= 0 or not np.isfinite(mean + std).all():
            raise ValueError(f"mean {mean} and deviation {std} are no pixels'")
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _clamped(share: float) -> str:
    return f"; {100 * share:.2g} % of them are beyond black and white, and clamped" if share else ""


def _read(file: Path) -> _Found:
    found = _found(_load(file), file)
    partner = file.with_name(re.sub("image", "label", file.name))
    if found.labels is None and partner != file and partner.is_file():
        given = _load(partner)
        given = _labels(given, partner) if isinstance(given, Mapping) else _numbers(given, partner)
        if given is None:
            raise ValueError(f"{partner} holds no labels")
        found = replace(found, labels=given)
    images, labels = found.images, found.labels
    if labels is not None and not labels.dim():
        raise ValueError(f"{file} needs a label for each image, and has one number")
    if images.dim() == 5:  # [classes, ipc, 3, S, S]
        if labels is None:
            labels = torch.arange(images.shape[0]).repeat_interleave(images.shape[1])
        images, labels = images.flatten(0, 1), labels.flatten() if labels.shape == images.shape[:2] else labels
    if images.dim() == 4 and images.shape[1] != 3 and images.shape[3] == 3:
        images = images.permute(0, 3, 1, 2)
    if images.dim() != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"{file} needs images [N, 3, H, W], got {tuple(found.images.shape)}")
    return replace(found, images=images.detach(), labels=labels)


def _load(file: Path) -> Any:
    """The content of the file; what our own safetensors files say is beside the tensors."""
    if file.suffix.lower() == ".npz":
        arrays = read_npz(file, (*_IMAGES, *_LABELS, "classes"))
        native = {name: array.astype(array.dtype.newbyteorder("="), copy=False) for name, array in arrays.items()}
        return {
            name: torch.from_numpy(array) if array.dtype.kind in "?buifc" else array.tolist()
            for name, array in native.items()
        }
    if file.suffix.lower() != ".safetensors":
        return read_checkpoint(file, "{path} cannot be read as tensors: {error}")
    tensors, metadata = read_tensors(file)
    said: dict[str, Any] = {"classes": metadata["classes"].split("\n")} if "classes" in metadata else {}
    if _STATISTICS in metadata:
        said[_STATISTICS] = parse_json(metadata[_STATISTICS], file)
    return {**tensors, **said}


def _found(loaded: Any, file: Path) -> _Found:
    """Images in a bare tensor, a pair with labels, a dict of both, or {"data": pairs}, of which the last counts."""
    if isinstance(loaded, Mapping):
        data, names = loaded.get("data"), loaded.get("classes")
        if isinstance(data, list | tuple) and data:
            return _found(tuple(data[-1]), file)
        images = next((loaded[key] for key in _IMAGES if isinstance(loaded.get(key), Tensor)), None)
        labels = _labels(loaded, file)
        classes = tuple(str(name) for name in names) if isinstance(names, list | tuple) else None
        statistics = _pixel_statistics(loaded[_STATISTICS], file) if _STATISTICS in loaded else None
    else:
        pair = loaded if isinstance(loaded, list | tuple) and len(loaded) == 2 else (loaded, None)
        (images, labels), classes, statistics = (pair[0], _numbers(pair[1], file)), None, None
    if not isinstance(images, Tensor):
        what = ", ".join(map(str, loaded)) if isinstance(loaded, Mapping) else type(loaded).__name__
        what = what or f"nothing called {' or '.join(_IMAGES)}"
        raise ValueError(f"{file} holds no images and labels as tensors, but {what:.80}")
    return _Found(images, labels, classes, statistics)


def _labels(loaded: Mapping[str, Any], file: Path) -> Tensor | None:
    """The labels in a dict, under whichever name. Raises ValueError as `_numbers`."""
    return _numbers(next((loaded[key] for key in _LABELS if loaded.get(key) is not None), None), file)


def _numbers(labels: Any, file: Path) -> Tensor | None:
    """Labels as a tensor, if there are any. Raises ValueError that names the file if they are no numbers."""
    if labels is None or isinstance(labels, Tensor):
        return labels
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{file} needs class numbers as labels, got {labels!r:.60}") from None


# --- writing ---------------------------------------------------------------------------------------------------------


def write_image_tensors(condensed: CondensedSet, folder: Path, dataset: Dataset) -> list[Path]:
    """condensed.pt and condensed.safetensors: images float32 [N, 3, S, S] normalised, by which mean and deviation,
    labels int64 [N], class names."""
    pixels, labels = condensed.flat()
    images = Normalization.of(dataset, torch.device("cpu"))(pixels).contiguous()
    paths = [folder / "condensed.pt", folder / "condensed.safetensors"]
    folder.mkdir(parents=True, exist_ok=True)
    classes, statistics = list(condensed.classes), [list(dataset.mean), list(dataset.std)]
    write_checkpoint(paths[0], {"images": images, "labels": labels, "classes": classes, _STATISTICS: statistics})
    said = {"classes": "\n".join(classes), _STATISTICS: json.dumps(statistics)}
    write_tensors(paths[1], {"images": images, "labels": labels}, said)
    return paths
