"""The given images as files that scripts read: JPEGs of one class, or arrays of ten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import sklearn.datasets
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fastcondense.loaders.class_folders import index_folder

from .peer import Setting

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_images(folder: Path | None, count: int, size: int) -> Tensor:
    """`count` images spread over a folder of <class>/<image>, or digits: normalised float32 [count, 3, size, size].

    Again from the beginning where there are fewer; resized without keeping their shape. Raises ValueError if a folder
    has none.
    """
    if folder is None:
        digits = sklearn.datasets.load_digits().images[:count]
        read = torch.from_numpy(digits / 16).float()[:, None].expand(-1, 3, -1, -1)
        images = F.interpolate(read, (size, size), mode="bilinear")
    else:
        files = index_folder(folder)[0]
        files = [files[number] for number in np.linspace(0, len(files) - 1, min(count, len(files))).astype(int)]
        images = torch.empty(len(files), 3, size, size)
        for number, file in enumerate(files):
            with Image.open(file) as image:
                array = np.asarray(image.convert("RGB").resize((size, size)))
            images[number] = torch.from_numpy(array.copy()).permute(2, 0, 1) / 255
    images = images[torch.arange(count) % len(images)]
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def pixels(images: Tensor) -> Tensor:
    """Normalised [N, 3, S, S] -> uint8."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    return (255 * (images * std + mean)).round().clamp(0, 255).byte()


def write_class(setting: Setting) -> Path:
    """A folder with train/00000/*.jpg, the setting's images, and the first one in val/00000."""
    folder = setting.scratch / "images"
    if not folder.exists():
        arrays = pixels(setting.images).permute(0, 2, 3, 1).cpu().numpy()
        for split, shown in (("train", arrays), ("val", arrays[:1])):
            (folder / split / "00000").mkdir(parents=True)
            for number, array in enumerate(shown):
                Image.fromarray(array).save(folder / split / "00000" / f"{number:05d}.jpg", quality=95)
    return folder


def write_arrays(setting: Setting, num_classes: int) -> Path:
    """A folder with train.npz and test.npz: the setting's images, whose classes take turns."""
    folder = setting.scratch / "arrays"
    if not folder.exists():
        folder.mkdir()
        arrays = pixels(setting.images).permute(0, 2, 3, 1).cpu().numpy()
        for split in ("train", "test"):
            np.savez(folder / f"{split}.npz", images=arrays, labels=np.arange(len(arrays)) % num_classes)
    return folder
