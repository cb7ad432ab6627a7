"""A folder of ImageNet's shape from photographs that you have: its 1,000 classes, its counts, its odd files.

    python scripts/imagenet_shaped.py PHOTOS [PHOTOS ...] --out DIR                 # 1,281,167 + 50,000 entries
    python scripts/imagenet_shaped.py PHOTOS --out DIR --classes 100 --train 20000 --val 1000 --size 64

PHOTOS are folders, or files, of images. An entry is a hard link to one of them, so that a million take no more room
than they do; with --size they are encoded again first. Photographs whose names begin with a wnid, as
n01440764_tench.JPEG, or that lie in a folder of that name, give the classes, in order; those beyond are called n9....

ImageNet's oddities are among the training images: a PNG named .JPEG, 22 CMYK ones, one with stray bytes before its end,
which strict decoders refuse, and some that are grey or carry an EXIF orientation.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from fastcondense.files import new_folder
from fastcondense.loaders.class_folders import EXTENSIONS
from fastcondense.loaders.folder import decode
from fastcondense.loaders.resize import resized
from fastcondense.rng import Stream

TRAIN, VAL, CLASSES = 1_281_167, 50_000, 1_000
_SMALLEST = 732 / 1300
"""Of ImageNet's smallest class to its largest; nine in ten are as large as the largest."""
_WNID = re.compile(r"n\d{8}")
_QUALITY = 90


def class_counts(total: int, classes: int, seed: int) -> np.ndarray:
    """Images of each class, int64 [classes], one at least: most classes are equal, a tenth of them smaller."""
    few = Stream(seed, "imagenet-shaped/small").permutation(classes)[: classes // 10]
    shares = np.ones(classes)
    shares[few] -= (1 - _SMALLEST) * Stream(seed, "imagenet-shaped/counts").uniform(few)[0]
    ends = np.rint(shares.cumsum() / shares.sum() * (total - classes)).astype(np.int64)
    return 1 + np.diff(ends, prepend=0)


def photographs(sources: list[Path]) -> list[Path]:
    """The image files that are named, or lie below what is named, sorted. Raises ValueError if there are none."""
    found = [path for source in sources for path in ([source] if source.is_file() else sorted(source.rglob("*")))]
    found = [path for path in found if path.suffix.lower() in EXTENSIONS and path.is_file()]
    if not found:
        raise ValueError(f"there are no photographs in {', '.join(map(str, sources))}")
    return found


def wnid_of(path: Path) -> str | None:
    """The wnid that a photograph's name, or its folder's, begins with."""
    found = _WNID.match(path.name) or _WNID.match(path.parent.name)
    return found[0] if found else None


def odd_files(image: Image.Image) -> dict[str, tuple[bytes, int]]:
    """Files of each odd kind, and how many of ImageNet's entries are of that kind."""

    def encoded(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
        with io.BytesIO() as file:
            picture.save(file, kind, **options)
            return file.getvalue()

    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    plain = encoded(image, quality=_QUALITY)
    return {
        "png": (encoded(image, "PNG"), 1),
        "strict": (plain[:-2] + bytes(4) + plain[-2:], 1),  # "Corrupt JPEG data: 4 extraneous bytes before marker"
        "cmyk": (encoded(image.convert("CMYK"), quality=_QUALITY), 22),
        "grey": (encoded(image.convert("L"), quality=_QUALITY), 1000),
        "turned": (encoded(image, quality=_QUALITY, exif=turned), 1000),
    }


def keep(path: Path, kept: Path, size: int) -> None:
    """Puts a photograph at `kept`: a link or a copy, or in RGB with `size` pixels of short side."""
    if not size:
        try:
            kept.hardlink_to(path)
        except OSError:  # it lies on another disk
            shutil.copyfile(path, kept)
        return
    image = decode(path)
    height, width = resized(image.height, image.width, size)
    image.resize((width, height), Image.Resampling.BILINEAR).save(kept, "JPEG", quality=_QUALITY)


def write(
    sources: list[Path], out: Path, *, train: int, val: int, classes: int, size: int = 0, seed: int = 0
) -> tuple[int, int]:
    """Writes out/train and out/val, and the photographs themselves into a hidden folder there; returns their entries.

    Raises ValueError for numbers that cannot be, and where one file would need more links than the disk allows.
    """
    if classes < 1 or train < classes or val < classes or size < 0:
        raise ValueError(f"a class needs an image of each split: {classes} classes, --train {train}, --val {val}")
    found = photographs(sources)
    wnids = sorted({wnid for path in found if (wnid := wnid_of(path))})[:classes]
    wnids += [f"n9{number:07d}" for number in range(classes - len(wnids))]
    with new_folder(out) as folder:
        pool = folder / ".photographs"
        pool.mkdir()
        if (train + val) // len(found) + 2 > (most := os.pathconf(pool, "PC_LINK_MAX")):
            raise ValueError(f"{len(found)} photographs are too few: a file may have {most} links here")
        kept = [str(pool / f"{number:05d}.JPEG") for number in range(len(found))]
        for path, place in zip(found, kept, strict=True):
            keep(path, Path(place), size)
        odd: dict[int, str] = {}
        for kind, (data, count) in odd_files(decode(Path(kept[0]))).items():
            (pool / f"{kind}.JPEG").write_bytes(data)
            odd |= dict.fromkeys(range(len(odd), len(odd) + -(-count * train // TRAIN)), str(pool / f"{kind}.JPEG"))
        order = Stream(seed, "imagenet-shaped/odd").permutation(train)[: len(odd)]
        odd = {int(entry): odd[k] for k, entry in enumerate(order)}
        entry = 0
        for split, total in (("train", train), ("val", val)):
            counts = (
                class_counts(total, classes, seed)
                if split == "train"
                else np.diff(total * np.arange(classes + 1) // classes)
            )
            for wnid, count in zip(wnids, counts.tolist(), strict=True):
                place = f"{folder}/{split}/{wnid}"
                os.makedirs(place)
                for number in range(count):
                    name = f"{wnid}_{number}" if split == "train" else f"ILSVRC2012_val_{entry - train + 1:08d}"
                    os.link(odd.get(entry, kept[entry % len(kept)]), f"{place}/{name}.JPEG")
                    entry += 1
    return train, val


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+", metavar="PHOTOS")
    parser.add_argument("--out", type=Path, required=True, help="new folder, which gets train/ and val/")
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--train", type=int, default=TRAIN, help="training entries of all classes")
    parser.add_argument("--val", type=int, default=VAL, help="validation entries of all classes")
    parser.add_argument("--size", type=int, default=0, help="short side to encode the photographs at; 0: as they are")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    try:
        train, val = write(options.pop("photos"), options.pop("out"), **options)
    except (ValueError, OSError) as error:
        sys.exit(f"imagenet_shaped: {error}")
    print(f"{train} training and {val} validation entries")


if __name__ == "__main__":
    main()
