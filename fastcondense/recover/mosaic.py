"""Mosaics: of every class the crops that teachers know best, stitched into images (RDED, EDC, CIM).

What is kept in the run's folder is the ranking of a class's crops. It depends on neither ipc nor layout, so a larger
set goes on from it; the crops themselves are read from the data again when a job asks for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.jobs import Job
from ..data.real import square_batches, window_batches
from ..devices import stopwatch
from ..loaders.source import Windowed
from ..networks.precision import arithmetic
from ..recipe.recover import Initial
from ..rng import Stream
from ..run import Run
from ..teachers.kept import chosen
from ..teachers.teacher import Teacher
from ..tensor_files import Form, read_kept, write_tensors
from ..views.windows import windows
from ..workers.work import Items, shared

SQUARE = -1
"""The number of the crop that is an image's evaluation square."""
_BATCH = 100  # images that are scored together: fixed, because rounding depends on it


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Crops of a class's training images, the best first."""

    ids: Tensor
    """Sample of the training split, int64 [n]."""
    crops: Tensor
    """Number of the crop of that sample, int64 [n]: the epoch of the stream initial/windows in which `windows` gives
    its window."""
    scores: Tensor
    """Cross-entropy of the class, float32 [n], ascending."""

    def first(self, count: int) -> Ranked:
        return Ranked(self.ids[:count], self.crops[:count], self.scores[:count])


class Mosaics:
    """Mosaics of a job: normalised float32 [num_images, 3, S, S]."""

    def __init__(self, run: Run, ranked: Sequence[Ranked]):
        self.run, self.ranked = run, ranked

    def __call__(self, job: Job) -> Tensor:
        recipe = self.run.recipe
        return stitch(self._crops(job), recipe.dataset.image_size, recipe.recover.initial.resize)

    def anchors(self, job: Job) -> Tensor:
        """The crops as they were before they were made to fit: number k num_images + i is tile k of image i (CIM)."""
        return self._crops(job).transpose(0, 1).flatten(0, 1)

    def _crops(self, job: Job) -> Tensor:
        # [num_images, factor^2, 3, side, side]
        run, initial = self.run, self.run.recipe.recover.initial
        ids, crops = [], []
        for label, slot in zip(job.classes().tolist(), job.slots().tolist(), strict=True):
            ranks = tile_ranks(initial, run.recipe.ipc, slot)
            ids.append(self.ranked[label].ids[ranks])
            crops.append(self.ranked[label].crops[ranks])
        return read_crops(run, torch.cat(ids), torch.cat(crops)).unflatten(0, (job.num_images, -1))


def mosaics(run: Run, teachers: Sequence[Teacher]) -> Mosaics:
    """Ranks the crops of all classes; finished ones are read. Raises ValueError, first of all, as `ranked` does."""
    labels, folder = range(len(run.real.classes)), _folder(run, teachers)
    for label, count in enumerate(np.bincount(run.real.train.labels, minlength=len(labels)).tolist()):
        _check_count(run, label, _most_crops(run.recipe.recover.initial, count))
    work = Items("crops", folder, labels, lambda label: _path(folder, label).exists())
    if not all(map(work.is_finished, labels)):
        with stopwatch(run.device) as watch:
            mine = [ranked(run, teachers, label, folder) for label, _ in shared(run.log, "scores of real crops", work)]
        run.log.event("rankings", classes=len(mine), seconds=watch.seconds)
    return Mosaics(run, [ranked(run, teachers, label, folder) for label in labels])


def ranked(run: Run, teachers: Sequence[Teacher], label: int, folder: Path | None = None) -> Ranked:
    """The ipc * factor^2 best crops of a class, by the observers' cross-entropy; ties by sample and crop.

    teachers: all of the recipe's; recover.initial.teachers says which observe. Read from the folder of the run's
    rankings, if that is known already, or scored and kept there. Raises ValueError if the class has too few images that
    can be read.
    """
    path = _path(folder or _folder(run, teachers), label)
    if not path.exists():
        with arithmetic("fp32"):
            found = _rank(run, chosen(teachers, run.recipe.recover.initial.teachers), label)
        run.report_skipped(run.real.train)
        write_tensors(path, vars(found), {"class": run.real.classes[label]})
    forms: dict[str, Form] = {"ids": (torch.int64, [-1]), "crops": (torch.int64, [-1]), "scores": (torch.float32, [-1])}
    kept, most = Ranked(**read_kept(path, forms)), run.recipe.recover.initial.crops
    run.real.train.check_class(kept.ids.numpy(), label, path)
    is_crop = (kept.crops >= (0 if most else SQUARE)) & (kept.crops < most)
    if not len(kept.ids) == len(kept.crops) == len(kept.scores) or not bool(is_crop.all()):
        raise ValueError(f"{path} is not what a run keeps there; remove it: it ranks crops that there are not")
    _check_count(run, label, len(kept.ids))
    return kept.first(_needed(run))


def read_crops(run: Run, ids: Tensor, crops: Tensor) -> Tensor:
    """Normalised pixels of ranked crops, float32 [n, 3, side, side] on the run's device, in the order given.

    Raises ValueError if a file that could be read when it was scored no longer can.
    """
    samples, numbers, side = ids.numpy(), crops.numpy(), _side(run)
    result = torch.empty(len(samples), 3, side, side, device=run.device)
    for number in np.unique(numbers):
        at = np.flatnonzero(numbers == number)
        images = [batch for batch, _ in _batches(run, samples[at], int(number))]
        if sum(map(len, images)) < len(at):
            run.report_skipped(run.real.train)
            raise ValueError("a training image of a mosaic can no longer be read")
        result[torch.from_numpy(at).to(run.device)] = torch.cat(images)
    return result


def tile_ranks(initial: Initial, ipc: int, slot: int) -> Tensor:
    """Ranks of the crops in the tiles of the image `slot`, row by row: int64 [factor^2]."""
    tiles = torch.arange(initial.factor**2)
    return tiles * ipc + slot if initial.layout == "rank-major" else slot * len(tiles) + tiles


def stitch(tiles: Tensor, size: int, resize: str) -> Tensor:
    """tiles: [N, factor^2, C, side, side], row by row -> [N, C, size, size].

    The first size % factor rows and columns of tiles are a pixel larger than the others; a crop of another size than
    its tile is resized.
    """
    factor = round(tiles.shape[1] ** 0.5)
    result = tiles.new_empty(len(tiles), tiles.shape[2], size, size)
    places = [place for row in result.tensor_split(factor, 2) for place in row.tensor_split(factor, 3)]
    for place, crop in zip(places, tiles.unbind(1), strict=True):
        if crop.shape != place.shape:
            options = {"mode": "bilinear", "antialias": True} if resize == "antialias" else {"mode": "nearest"}
            crop = F.interpolate(crop, place.shape[2:], **options)
        place.copy_(crop)
    return result


def frame(crops: Tensor, size: int) -> Tensor:
    """Crops [N, C, h, w] in the middle of size x size pixels of mean colour, 0 in normalised space."""
    rows, columns = size - crops.shape[2], size - crops.shape[3]
    top, left = rows // 2, columns // 2
    return F.pad(crops, (left, columns - left, top, rows - top)).contiguous(memory_format=torch.channels_last)


def cross_entropy(logits: Tensor, label: int) -> Tensor:
    """-log softmax(logits)[:, label], float32 [N], as log(1 + e^-margin): precise where it is far below 1e-7 too.

    A crop that teachers are sure of has such a value; as 1 - p it would be 0, and all of them would tie.
    """
    others = logits.clone()
    others[:, label] = -torch.inf
    return F.softplus(others.logsumexp(1) - logits[:, label])


# --- scores ----------------------------------------------------------------------------------------------------------


def _rank(run: Run, observers: Sequence[Teacher], label: int) -> Ranked:
    """All ranked crops of a class, whatever ipc is."""
    initial = run.recipe.recover.initial
    members = run.real.train.of_class(label)
    order = Stream(run.recipe.seed, "initial/candidates").permutation(len(members), label)
    ids = members[order[: initial.candidates or None]]
    if initial.preselected:
        ids = _sorted(run, observers, label, ids, [SQUARE]).first(initial.preselected).ids.numpy()
    found = _sorted(run, observers, label, ids, range(initial.crops) if initial.crops else [SQUARE])
    if not initial.one_per_image:
        return found
    _, first = np.unique(found.ids.numpy(), return_index=True)
    return Ranked(*(column[np.sort(first)] for column in vars(found).values()))


def _sorted(run: Run, observers: Sequence[Teacher], label: int, ids: np.ndarray, numbers: Sequence[int]) -> Ranked:
    """The given crops of the samples `ids`, as far as they can be read, the best first."""
    size = run.recipe.dataset.image_size
    read, crops, scores = [], [], []
    for number in numbers:
        for images, samples in _batches(run, ids, number):
            framed = frame(images, size)
            logits = torch.stack([observer.logits(framed) for observer in observers]).mean(0)
            scores.append(cross_entropy(logits, label))
            crops.append(torch.full_like(samples, number))
            read.append(samples)
    if not read:
        return Ranked(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    columns = [torch.cat(parts).cpu() for parts in (read, crops, scores)]
    order = np.lexsort((columns[1].numpy(), columns[0].numpy(), columns[2].numpy()))
    return Ranked(*(column[order] for column in columns))


def _batches(run: Run, ids: np.ndarray, number: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised crops number `number` of the samples `ids`, [B, 3, side, side], and those that could be read."""
    recipe, split = run.recipe, run.real.train
    if number == SQUARE:
        squares = square_batches(split, recipe.dataset, run.device, _BATCH, ids=ids)
        yield from ((run.normalize(pixels), read) for pixels, read in squares)
        return
    stream, views = Stream(recipe.seed, "initial/windows"), recipe.recover.initial
    cut = Windowed(_side(run), lambda ids, heights, widths: windows(stream, views, ids, number, heights, widths))
    parts = np.split(ids, range(_BATCH, len(ids), _BATCH))
    yield from window_batches(split, recipe.dataset, parts, cut, run.device)


def _side(run: Run) -> int:
    """Side of the crops that are ranked, in pixels."""
    initial, size = run.recipe.recover.initial, run.recipe.dataset.image_size
    return size // initial.factor if initial.crop_size == "tile" and initial.crops else size


# --- counts and files ------------------------------------------------------------------------------------------------


def _most_crops(initial: Initial, num_images: int) -> int:
    """Number of crops of a class of so many images that are ranked, if all can be read."""
    num_images = min(num_images, initial.candidates or num_images, initial.preselected or num_images)
    return num_images if initial.one_per_image else num_images * max(1, initial.crops)


def _needed(run: Run) -> int:
    return run.recipe.ipc * run.recipe.recover.initial.factor**2


def _check_count(run: Run, label: int, count: int) -> None:
    if count < _needed(run):
        raise ValueError(
            f"class {run.real.classes[label]!r} gives {count} crops, but mosaics need {_needed(run)}: ipc "
            f"{run.recipe.ipc} times the square of recover.initial.factor {run.recipe.recover.initial.factor}"
        )


def _folder(run: Run, teachers: Sequence[Teacher]) -> Path:
    """The folder where rankings are kept, named after all that decides them."""
    initial = dataclasses.asdict(run.recipe.recover.initial)
    observers = chosen(teachers, initial["teachers"])
    left_out = ("kind", "space", "teachers", "layout", "resize")
    return run.folder_of(
        "initial",
        squeeze=run.identity("squeeze"),
        observers={teacher.name: teacher.identity for teacher in observers},
        initial={key: value for key, value in initial.items() if key not in left_out},
    )


def _path(folder: Path, label: int) -> Path:
    return folder / f"class-{label:05d}.safetensors"
