"""FKD files: views and labels as SRe2L, CDA, G-VBSM, EDC, CV-DD, FADRM and others publish them; read, and written.

`epoch_<e>/batch_<k>.tar` is a torch.save (no tar) of a list about one batch of b views:

    coords   float32 [b, 4]: top, left, height and width of the window, as shares of the image's side
    flip     bool [b]
    partner  int64 [b]: the place in the batch of the view that is mixed in; None if nothing is
    lambda   float
    box      first row, first column, last row, last column (ends excluded) for CutMix; None for mixup by lambda
    logits   float16 [b, classes]: the mean of the teachers', of the mixed views
    index    int64 [b]: which images they are; G-VBSM and EDC only. For the others it is the order of `SamplerOrder`
    patches  EDC only; without effect, since the published code puts every patch back in its place

An image's index is its place in torchvision's ImageFolder: by class, and in a class by the name of its file. So images
stand in a condensed set, too. The layout is SRe2L's, G-VBSM's, EDC's and FADRM's. Images are square here: EDC's
coords, whose divisors are exchanged, need no care. The first file of ours says of what set it is, where torch.load does
not look.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

import torch
from torch import Tensor

from .. import restricted_pickle
from ..loaders.reading import naming, read_file, reading
from ..recipe.settings import Labels
from ..records import Sha256, checked, parse_json
from .view_tables import ViewTable

Mix = Literal["none", "cutmix", "mixup"]
ABOUT = "archive/fastcondense.json"
"""Member of the first file's archive that says what the labels are of; files of published code have none."""
_MOST_VIEWS = 1 << 20  # in a file
_CHANGES = ("padding", "roll", "tile_shuffle", "tile_pick", "augment", "rand_augment", "pool")


class About(TypedDict):
    """What labels are of: the names of the classes, in their order, and the hash of the images."""

    classes: list[str]
    images_sha256: Sha256


class SamplerOrder:
    """The order of the images in every epoch, int64 [count]: torch's RandomSampler with a generator seeded 42 once.

    It draws two permutations an epoch, of which the second is not used; old torch drew one.
    """

    def __init__(self, count: int, num_permutations: int = 2):
        self.count, self.num_permutations = count, num_permutations
        self.generator, self.num_drawn = torch.Generator().manual_seed(42), 0
        self.last = torch.empty(0, dtype=torch.int64)
        """The order of the last epoch that was drawn: the batches of an epoch ask for the same one."""

    def __call__(self, epoch: int) -> Tensor:
        if epoch < self.num_drawn - 1:
            self.generator.manual_seed(42)
            self.num_drawn = 0
        while self.num_drawn <= epoch:
            drawn = [torch.randperm(self.count, generator=self.generator) for _ in range(self.num_permutations)]
            self.last, self.num_drawn = drawn[0], self.num_drawn + 1
        return self.last


@dataclass(frozen=True)
class FKDBatch:
    """The fields of a file, but for the logits; index: None where the file has none."""

    coords: Tensor
    flip: Tensor
    partner: Tensor | None
    share: float | None
    box: tuple[int, int, int, int] | None
    index: Tensor | None = None

    @property
    def mix(self) -> Mix:
        """none also for lambda 1 and an empty box, which published readers take where they cannot take None."""
        if self.partner is None or self.share is None:
            return "none"
        if self.box is None:
            return "mixup"
        return "none" if self.share == 1 and self.box == (0, 0, 0, 0) else "cutmix"

    def table(self, ids: Tensor, size: int) -> ViewTable:
        """The table of views of the images `ids`, int64 [b], of `size` pixels a side. Boxes are empty but for CutMix.

        Windows are rounded to pixels as Pillow does: their edges, to the nearest, halves to the even one.
        """
        count, box = len(ids), self.box if self.mix == "cutmix" and self.box else (0, 0, 0, 0)
        top, left, height, width = (size * self.coords.double()).unbind(1)
        first_row, first_column, bottom, right = (x.round() for x in (top, left, top + height, left + width))
        zero = torch.zeros(count)
        columns = (first_row, first_column, bottom - first_row, right - first_column, self.flip, zero, zero)
        windows = torch.stack([column.int() for column in columns], 1)
        partner = torch.arange(count) if self.partner is None or self.mix == "none" else self.partner
        share = 1 - (box[2] - box[0]) * (box[3] - box[1]) / size**2
        if self.mix == "mixup" and self.share is not None:
            share = self.share
        return ViewTable(
            ids=ids,
            partners=ids[partner],
            windows=windows,
            partner_windows=windows[partner],
            share=torch.full((count,), share),
            boxes=torch.tensor([box[0], box[2], box[1], box[3]], dtype=torch.int32).repeat(count, 1),
        )

    def check(self, size: int) -> None:
        """Raises ValueError if it cannot be about images of `size` pixels a side."""
        count = len(self.flip)
        if self.coords.shape != (count, 4) or not bool(((self.coords >= 0) & (self.coords <= 1)).all()):
            raise ValueError(f"coords must be shares of the side, [{count}, 4]")
        if self.partner is not None and self.partner.sort().values.tolist() != list(range(count)):
            raise ValueError(f"what is mixed in must be a permutation of the batch's {count} views")
        if self.share is not None and not 0 <= self.share <= 1:
            raise ValueError(f"lambda must lie in [0, 1], got {self.share}")
        if self.box is not None and not (
            0 <= self.box[0] <= self.box[2] <= size and 0 <= self.box[1] <= self.box[3] <= size
        ):
            raise ValueError(f"the box {self.box} is not in images of {size} pixels")
        table = self.table(torch.arange(count), size).windows
        if not bool(((table[:, 2:4] > 0) & (table[:, :2] + table[:, 2:4] <= size)).all()):
            raise ValueError(f"a window is not in images of {size} pixels")


def is_fkd(folder: Path) -> bool:
    """Whether the folder holds FKD files."""
    return bool(epoch_numbers(folder))


def num_bytes(folder: Path, epochs: int) -> int:
    """Size of the files of the first epochs."""
    return sum(path.stat().st_size for epoch in range(epochs) for path in (folder / f"epoch_{epoch}").glob("*"))


def read_about(folder: Path) -> About | None:
    """What the first file says of its set, which those that we write do. Raises ValueError for a damaged file."""
    path = folder / "epoch_0" / "batch_0.tar"
    with reading(path, "label file {path} cannot be read: {error}"):
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            if ABOUT not in archive.namelist():
                return None
            if archive.getinfo(ABOUT).file_size > path.stat().st_size:
                raise ValueError(f"{ABOUT} claims more bytes than it has")
            data = archive.read(ABOUT)
    source = f"{ABOUT} in {path}"
    return checked(parse_json(data, source), About, source)


def sampled_sha256(folder: Path) -> str:
    """SHA-256 of names and sizes of all files, and of the bytes of one file an epoch: made anew, all would differ."""
    digest = hashlib.sha256()
    for epoch in epoch_numbers(folder):
        paths = sorted((folder / f"epoch_{epoch}").glob("batch_*.tar"))
        for path in paths:
            digest.update(f"{epoch} {path.name} {path.stat().st_size}\n".encode())
        for path in paths[:1]:
            digest.update(read_file(path))
    return digest.hexdigest()


def epoch_numbers(folder: Path) -> list[int]:
    """Numbers of the epochs; whatever else is in the folder counts for nothing."""
    return numbers_in(folder, "epoch_", "")


def numbers_in(folder: Path, begin: str, end: str) -> list[int]:
    """Numbers between `begin` and `end` in the names of what is in the folder, in their order, each once."""
    pattern = f"{re.escape(begin)}(0|[1-9][0-9]*){re.escape(end)}"
    found = (re.fullmatch(pattern, path.name) for path in (folder.iterdir() if folder.is_dir() else ()))
    return sorted(int(match[1]) for match in found if match)


def read_batch(path: Path, size: int) -> tuple[FKDBatch, Tensor]:
    """A file about images of `size` pixels a side, and its logits. Raises ValueError that names what is wrong with it.

    Nothing in the file is run.
    """
    if not path.exists():
        raise ValueError(f"label file {path} is missing")
    with reading(path, "label file {path} cannot be read: {error}"):
        fields = restricted_pickle.load(path)
    with naming(path, "label file {path} is no batch of FKD: {error}"):
        coords, flip, partner, share, box, logits, *more = fields
        index = more[0] if more else None
        _check_sizes(len(flip), coords=(coords, 4), flip=(flip, 1), partners=(partner, 1), index=(index, 1))
        batch = FKDBatch(
            coords.float(),
            flip.bool(),
            None if partner is None else partner.long(),
            None if share is None else float(share),
            None if box is None else (int(box[0]), int(box[1]), int(box[2]), int(box[3])),
            None if index is None else index.long(),
        )
        if len(logits) != len(flip):
            raise ValueError(f"{len(logits)} labels of {len(flip)} views")
        batch.check(size)
        if logits.dim() != 2 or not logits.is_floating_point():
            raise ValueError(f"logits are {logits.dtype} {tuple(logits.shape)}")
        if not bool(logits.isfinite().all()):
            raise ValueError("its logits are not finite")
        return batch, logits


def _check_sizes(count: int, **fields: tuple[Tensor | None, int]) -> None:
    """Raises ValueError for fields that have not so many values for each of `count` views; none is converted before."""
    if count > _MOST_VIEWS:
        raise ValueError(f"it claims {count} views")
    for name, (values, width) in fields.items():
        if values is not None and values.numel() != width * count:
            raise ValueError(f"{name} have {values.numel()} values for {count} views")


def check_settings(labels: Labels) -> None:
    """Raises ValueError if the views of the settings cannot be said in FKD files: those hold crop, flip and mixing."""
    for name in _CHANGES:
        if (value := getattr(labels, name)) != (plain := getattr(Labels(), name)):
            raise ValueError(
                f"FKD files hold crops, flips and mixing alone: labels.{name} must be {plain}, got {value}"
            )
