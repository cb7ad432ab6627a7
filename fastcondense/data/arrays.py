"""The one entry of labels and images that come as arrays: nothing is cast before it is checked."""

from __future__ import annotations

import numpy as np

from .splits import Split


def checked_split(images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], where: str) -> Split:
    """A split of images uint8 [N, H, W, 3] and labels that are whole numbers [N] or [N, 1], into `classes`.

    Raises ValueError that names `where` and what is wrong: types, axes and their order, counts, values.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"{where} needs images uint8 [N, H, W, 3], got {images.dtype} {images.shape}")
    if images.ndim != 4 or images.shape[3] != 3:
        found = next(
            (
                order
                for order, axis in (("N, 3, H, W", 1), ("3, N, H, W", 0), ("H, W, 3, N", 2))
                if images.ndim == 4 and images.shape[axis] == 3
            ),
            None,
        )
        hint = f": axes in the order {found}?" if found else ""
        raise ValueError(f"{where} needs images uint8 [N, H, W, 3], got {images.dtype} {images.shape}{hint}")
    numbers = labels_of_classes(labels, len(images), classes, where)
    if not images.size:
        raise ValueError(f"{where} holds images without pixels, {images.shape}")
    if images.max() <= 1:
        raise ValueError(f"{where} has no value above 1 in its images, nearly black: are they pixels in [0, 1]?")
    return Split(numbers, images)


def labels_of_classes(labels: np.ndarray, count: int, classes: tuple[str, ...], where: str) -> np.ndarray:
    """Labels as int64 [count], into `classes`.

    Raises ValueError as `checked_labels`, if there are none, for some beyond the classes, and for classes of one name.
    """
    if not count:
        raise ValueError(f"{where} holds no images")
    numbers = checked_labels(labels, count, where)
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise ValueError(f"{where}: two classes are called {twice!r}")
    if numbers.min() < 0 or numbers.max() >= len(classes):
        hint = ": do they count from 1?" if numbers.min() == 1 and numbers.max() == len(classes) else ""
        raise ValueError(
            f"{where} needs labels from 0 to {len(classes) - 1}, got {numbers.min()} to {numbers.max()}{hint}"
        )
    return numbers


def checked_labels(labels: np.ndarray, count: int, where: str) -> np.ndarray:
    """Labels as int64 [count]. Raises ValueError that names `where` if they are others than `count` whole numbers."""
    try:
        labels = np.asarray(labels)
    except ValueError:  # lists of several lengths
        raise ValueError(f"{where} needs a class number for each image, got lists of several lengths") from None
    if labels.ndim == 2 and 1 in labels.shape and count == labels.size:
        labels = labels.reshape(-1)
    if labels.ndim == 2 and labels.shape[0] == count:
        raise ValueError(f"{where} needs a class number for each image, got {labels.dtype} {labels.shape}: one-hot?")
    if labels.shape != (count,):
        raise ValueError(f"{where} needs as many labels as its {count} images, got {labels.dtype} {labels.shape}")
    if labels.dtype.kind not in "iuf":
        raise ValueError(f"{where} needs whole numbers as labels, got {labels.dtype}, such as {labels[:1].tolist()}")
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all():
            raise ValueError(f"{where} has labels that are not finite")
        if (odd := labels[labels != np.rint(labels)]).size:
            raise ValueError(f"{where} needs whole numbers as labels, got {odd[0]}")
    if labels.size and labels.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{where} needs labels that are class numbers, got {labels.max()}")
    return labels.astype(np.int64)
