"""FKD files as views and labels of a student, and the other way round; the files themselves: fkd_files.py."""

from __future__ import annotations

import itertools
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import bdtrc
from torch import Tensor

from ..data.real import split_batches
from ..files import check_room
from ..recipe.settings import Optimization
from ..recover.stage import condensed_set
from ..run import Run
from ..teachers.kept import labelling_teachers
from ..tensor_files import write_checkpoint
from ..views.boxes import cutmix_boxes
from .fkd_files import (
    ABOUT,
    About,
    FKDBatch,
    Mix,
    SamplerOrder,
    check_settings,
    epoch_numbers,
    num_bytes,
    numbers_in,
    read_about,
    read_batch,
)
from .labels import TeacherLabels, Wanted
from .resident import place
from .view_tables import Span, ViewBatch, ViewTable
from .views import CHUNK, ReplayedViews

# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    table: ViewTable
    logits: Tensor


class FKDViews(ReplayedViews):
    """The views of FKD files about the images of `views`, and their logits; a thread reads the files that come next,
    and of those that were read the last few are held.

    Raises ValueError for files about another set: another number of images or classes, or another size of images.
    """

    def __init__(self, folder: Path, views: ReplayedViews, num_classes: int, num_permutations: int = 2):
        super().__init__(views.placed, views.labels, views.settings, views.normalize, 42)
        self.folder, self.num_classes = folder, num_classes
        self.order = SamplerOrder(len(self.images), num_permutations)
        epochs, numbers = epoch_numbers(folder), numbers_in(folder / "epoch_0", "batch_", ".tar")
        for name, found in (("epoch_{}", epochs), ("epoch_0/batch_{}.tar", numbers)):
            for number in sorted(set(range(max(1, len(found)))) - set(found)):
                raise ValueError(f"{folder} holds FKD files, but {name.format(number)} is missing")
        self.num_epochs = len(epochs)
        first, last = (self._read_batch(0, number)[0] for number in (0, numbers[-1]))
        self.batch_size, self.has_index = len(first.flip), first.index is not None
        if (count := self.batch_size * numbers[-1] + len(last.flip)) != len(self.images):
            raise ValueError(f"{folder} holds labels of {count} images, but the set has {len(self.images)}")
        self.num_files = -(-len(self.images) // self.batch_size)
        self.mix: Mix | None = None  # until a file tells
        for number in range(self.num_files):
            self.read(0, number)
        self.mix = self.mix or "none"
        self.settings = replace(self.settings, mix=self.mix)
        self._reader = ThreadPoolExecutor(1)
        self._ahead = 1 + CHUNK // self.batch_size  # the tables of a chunk are wanted before its logits
        self._held: OrderedDict[int, Future[_File]] = OrderedDict()

    def spans(self, epoch: int, train: Optimization) -> list[Span]:
        """A batch is a file; a last one of one view joins the one before, as in `split_batches`."""
        batches = split_batches(np.arange(len(self.images)), train.batch_size)
        return [Span(epoch, int(batch[0]), int(batch[-1]) + 1) for batch in batches]

    def table(self, spans: Sequence[Span]) -> ViewTable:
        """The views of some batches as a table, one batch after another, on the host."""
        pieces = (piece for span in spans for piece in self._pieces(span))
        table = _together([file.table.rows(begin, end) for file, begin, end in pieces])
        return table if self.settings.mix == "cutmix" else replace(table, boxes=None)

    def wanted(self, batch: ViewBatch) -> Wanted:
        """The labels of a batch."""
        device = batch.images.device
        logits = torch.cat([file.logits[begin:end] for file, begin, end in self._pieces(batch.span)])
        moved = (logits.pin_memory() if device.type == "cuda" else logits).to(device, non_blocking=True)
        return Wanted(moved.float()[None], batch.labels, batch.partners, batch.share)

    def num_hits(self, epochs: int) -> int:
        """Number of views of the first epochs whose largest logit is the class of the image that is theirs."""
        labels, files = self.labels.cpu(), itertools.product(range(epochs), range(self.num_files))
        read = itertools.starmap(self.read, files)
        return sum(int((file.logits.argmax(1) == labels[file.table.ids]).sum()) for file in read)

    def read(self, epoch: int, number: int) -> _File:
        """Reads a file of an epoch."""
        count, begin = len(self.images), number * self.batch_size
        batch, logits = self._read_batch(epoch, number)
        ids = self.order(epoch)[begin : begin + self.batch_size] if batch.index is None else batch.index
        expected = min(self.batch_size, count - begin)
        if len(logits) != expected or not bool(((ids >= 0) & (ids < count)).all()):
            raise ValueError(
                f"batch_{number}.tar of epoch {epoch} in {self.folder} is not about {expected} of {count} images"
            )
        if batch.mix != "none":
            self.mix = self.mix or batch.mix
            if batch.mix != self.mix:
                raise ValueError(f"FKD files in {self.folder} mix views by CutMix and by mixup")
        return _File(batch.table(ids, self.images.shape[-1]), logits)

    def _read_batch(self, epoch: int, number: int) -> tuple[FKDBatch, Tensor]:
        path = self.folder / f"epoch_{epoch}" / f"batch_{number}.tar"
        batch, logits = read_batch(path, self.images.shape[-1])
        if logits.shape[1:] != (self.num_classes,):
            raise ValueError(f"label file {path} has logits {tuple(logits.shape)} for {self.num_classes} classes")
        return batch, logits

    def _pieces(self, span: Span) -> Iterator[tuple[_File, int, int]]:
        """The files that hold the views of a span, and which of theirs those are."""
        size = self.batch_size
        for number in range(span.begin // size, (span.end - 1) // size + 1):
            begin = number * size
            yield self._file(span.epoch, number), max(0, span.begin - begin), min(size, span.end - begin)

    def _file(self, epoch: int, number: int) -> _File:
        """A file, which is held already if it was among the next ones of the last that was asked for."""
        place = epoch * self.num_files + number
        for coming in range(place, min(place + self._ahead + 1, self.num_epochs * self.num_files)):
            if coming not in self._held:
                self._held[coming] = self._reader.submit(self.read, *divmod(coming, self.num_files))
        self._held.move_to_end(place)
        while len(self._held) > 4 * (1 + self._ahead):  # tables go a chunk, and what comes after it, before logits
            self._held.popitem(last=False)
        return self._held[place].result()


def _together(tables: Sequence[ViewTable]) -> ViewTable:
    names = [name for name, column in vars(tables[0]).items() if column is not None]
    columns: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in tables]) for name in names}
    return ViewTable(**columns)


def read_fkd(run: Run, folder: Path, views: ReplayedViews, images_sha256: str = "") -> FKDViews:
    """The views and labels of FKD files, for the images of `views`, and for the run's settings.

    Where files do not say which images they are about, the order is that of torch's sampler, new or old: the one by
    which the labels name the images' classes more often. Raises ValueError if they name them no better than chance
    (p > 0.001), if there are too few epochs, if the settings ask for other batches or views, and for files that say
    that they are of other images, or of classes in another order.
    """
    recipe, num_classes = run.recipe, len(run.real.classes)
    check_settings(recipe.labels)
    if (about := read_about(folder)) is not None:
        pairs = itertools.zip_longest(about["classes"], run.real.classes)
        for number, (theirs, ours) in enumerate(pairs):
            if theirs != ours:
                raise ValueError(
                    f"the FKD files in {folder} have the classes in another order than the run, or others: class "
                    f"{number} is {theirs!r} there, and {ours!r} here"
                )
        if images_sha256 not in ("", about["images_sha256"]):
            raise ValueError(f"the FKD files in {folder} are labels of other images than the run's")
    found = FKDViews(folder, views, num_classes)
    epochs = min(max(2, -(-1000 // len(found.images))), found.num_epochs)
    hits, total, sampler = found.num_hits(epochs), epochs * len(found.images), "index in the files"
    if not found.has_index:
        sampler, old = "order of torch's sampler", FKDViews(folder, views, num_classes, 1)
        if (old_hits := old.num_hits(epochs)) > hits:
            found, hits, sampler = old, old_hits, "order of an old torch's sampler"
    run.log.say(
        f"labels: FKD files in {folder}: {found.num_epochs} epochs, batches of {found.batch_size}, mix "
        f"{found.settings.mix}, {sampler}; they name the image's class in {100 * hits / total:.1f} % of {total} views"
    )
    if bdtrc(hits - 1, total, 1 / num_classes) > 1e-3:
        raise ValueError(
            f"the FKD files in {folder} name the class of {hits} of {total} views, which is chance; likeliest cause: "
            "another set, or another order of its classes or images"
        )
    wanted: dict[str, tuple[Any, Any]] = {
        "labels.mix": (recipe.labels.mix, found.settings.mix),
        "train.batch_size": (min(recipe.train.batch_size, len(found.images)), found.batch_size),
    }
    for name, (ours, theirs) in wanted.items():
        if ours != theirs:
            raise ValueError(f"{name} is {ours}, but the FKD files in {folder} were made with {theirs}")
    if recipe.train.epochs > found.num_epochs:
        raise ValueError(f"train.epochs is {recipe.train.epochs}, but {folder} holds {found.num_epochs} epochs")
    return found


# --- writing ---------------------------------------------------------------------------------------------------------


class BatchMixedViews(ReplayedViews):
    """Views that are mixed as published, by one permutation, lambda and box a batch, in the order of `SamplerOrder`.

    A window is that of the sample in the epoch, as in any replayed view. Lambda and box are those of the batch's first
    position; the permutation is the order of the positions' own random numbers.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.order = SamplerOrder(len(self.images))

    def batch(self, span: Span) -> FKDBatch:
        """The fields of a batch's file."""
        settings, size, count = self.settings, self.images.shape[-1], span.end - span.begin
        windows = torch.from_numpy(self.seen_windows(self._ids(span).numpy(), span.epoch))
        coords, flip = (windows[:, :4].double() / size).float(), windows[:, 4] != 0
        u_apply, u_row, u_column, _ = self.mix_stream.uniform(span.begin, span.epoch)
        if settings.mix == "none" or u_apply[0] >= settings.mix_probability:
            return FKDBatch(coords, flip, torch.arange(count), 1.0, (0, 0, 0, 0))
        lam = self.lambda_stream.beta(settings.mix_alpha, span.begin, span.epoch)
        keys = self.partner_stream.uniform(np.arange(span.begin, span.end), span.epoch)[0]
        partner = torch.from_numpy(np.argsort(keys, kind="stable"))
        if settings.mix == "mixup":
            return FKDBatch(coords, flip, partner, float(lam[0]), None)
        top, bottom, left, right = cutmix_boxes(lam, u_row, u_column, size)[0].tolist()
        return FKDBatch(coords, flip, partner, float(lam[0]), (top, left, bottom, right))

    def table(self, spans: Sequence[Span]) -> ViewTable:
        """The views of some batches as a table, one batch after another, on the host."""
        table = _together([self.batch(span).table(self._ids(span), self.images.shape[-1]) for span in spans])
        return table if self.settings.mix == "cutmix" else replace(table, boxes=None)

    def _ids(self, span: Span) -> Tensor:
        return self.order(span.epoch)[span.begin : span.end]


def write_fkd(run: Run, folder: Path, epochs: int) -> int:
    """Writes FKD files with the six fields of SRe2L for the run's condensed images; returns their bytes.

    Published readers take them with the run's train.batch_size, its labels.mix (cutmix for none: then boxes are empty),
    and the images as an ImageFolder in the order of the set. Views are `BatchMixedViews` of the run's seed, so that
    they are other mixtures than those that the run's own students see. Raises ValueError for a folder that holds
    anything (published readers take it for an epoch), for settings that FKD files cannot say, and if the disk is full.
    """
    recipe, labels = run.recipe, run.recipe.labels
    check_settings(labels)
    if recipe.recover.objective == "gradients" or recipe.train.prefix:
        raise ValueError("FKD files are of all images as they are; leave out train.prefix, and sets of tiles")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; FKD files need a folder of their own")
    teachers, condensed = labelling_teachers(run), condensed_set(run)
    pixels, classes = condensed.unread()
    views = BatchMixedViews(place(pixels, run.device), classes.to(run.device), labels, run.normalize, recipe.seed)
    source, size = TeacherLabels(teachers, labels, recipe.seed), recipe.train.batch_size
    bounds = [*range(0, len(pixels), size), len(pixels)]
    size_of_all = epochs * (len(pixels) * (2 * len(condensed.classes) + 25) + 2200 * (len(bounds) - 1))
    run.log.say(f"FKD files: about {size_of_all:,} bytes")
    folder.mkdir(parents=True, exist_ok=True)
    check_room(folder, size_of_all)
    about: About = {"classes": list(condensed.classes), "images_sha256": condensed.sha256}
    for epoch in run.log.track(range(epochs), "FKD files"):
        spans = [Span(epoch, begin, end) for begin, end in itertools.pairwise(bounds)]
        for number, batch in enumerate(views.batches(spans)):
            logits, fields = source.logits(batch.images, batch.span).float().mean(0), views.batch(batch.span)
            box = None if fields.box is None else list(fields.box)
            written = [fields.coords, fields.flip, fields.partner, fields.share, box, logits.half().cpu()]
            is_first = not epoch and not number
            extra = {ABOUT: json.dumps(about).encode()} if is_first else {}
            write_checkpoint(folder / f"epoch_{epoch}" / f"batch_{number}.tar", written, extra)
    return num_bytes(folder, epochs)
