"""Stored labels: the logits of every view that students see, computed once, in memory-mapped arrays with a row a view.

Rows stand epoch after epoch, and in an epoch by their place in its order; with labels.pool, only the pool's batches
have rows. A folder `seed<n>` for the seed of each student holds manifest.json, with a sha256 of each epoch's rows, and

    logits.npy   float16 [views, classes], the mean of the teachers' logits that the loss takes; or, with labels.top_k,
    classes.npy  uint16 [views, k] (uint32 for more than 65536 classes), the classes of the k largest logits,
    logits.npy   float16 [views, k], those logits, and
    rest.npy     float16 [views], the logit that all other classes share: tau log(mean of exp(z / tau) over them).

tau is train.temperature: in the loss the k classes keep their probabilities, and the others share equally what is left
over. train.loss mse_ce has no temperature: there the others share their mean, which is the limit for a large tau.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import trust
from ..data.real import split_batches
from ..files import check_room, first_difference, write_json
from ..loaders.reading import check_folder, reading, writing
from ..recipe.evaluation import label_parts
from ..recipe.recipe import Recipe, sha256_of
from ..recipe.train import Train, check_fewer
from ..records import StoredEpochs, read_checked
from ..recover.formation import shown
from ..run import Run
from ..sets.condensed import CondensedSet
from ..teachers.teacher import Teacher
from .fkd import read_fkd
from .fkd_files import is_fkd, num_bytes
from .label_rows import Shapes, array_shapes, compress, expand
from .labels import LabelSource, TeacherLabels, Wanted
from .resident import place
from .view_tables import Span, ViewBatch
from .views import ReplayedViews

FORMAT = 2


def stored_folder(run: Run) -> Path:
    """labels.stored, or labels/ in the run's folder; those of other settings than its own have folders in that."""
    stored, parts = run.recipe.labels.stored, label_parts(run.recipe)
    if stored:
        return trust.path(stored, "labels.stored")
    is_own = parts == label_parts(run.own_recipe())
    return run.out / "labels" if is_own else run.out / "labels" / sha256_of(parts)[:8]


def stored_bytes(run: Run) -> int:
    """Size of the files that the run's students read labels from; 0 if they read none."""
    folder, train = stored_folder(run), run.recipe.train
    if run.recipe.labels.source != "stored":
        return 0
    if is_fkd(folder):
        return num_bytes(folder, train.epochs)
    seeds = (run.recipe.seed + number for number in range(train.seeds))
    return sum(path.stat().st_size for seed in seeds for path in (folder / f"seed{seed}").glob("*"))


# --- writing ---------------------------------------------------------------------------------------------------------


def store_labels(run: Run, condensed: CondensedSet, teachers: Sequence[Teacher]) -> None:
    """Writes the labels of all students, an epoch after another; goes on where it was stopped. Leaves FKD files alone.

    Says the bytes before it writes any. Raises ValueError if they do not fit on the disk, or if the folder holds labels
    of something else.
    """
    recipe, folder = run.recipe, stored_folder(run)
    if is_fkd(folder):
        run.log.say(f"relabel: the labels are the FKD files in {folder}")
        return
    check_folder(folder)
    check_fewer("labels.top_k", recipe.labels.top_k, len(condensed.classes))
    pixels, labels = shown(recipe, condensed)
    placed, labels = place(pixels, run.device), labels.to(run.device)
    views, rows, shapes = {}, {}, {}
    for seed in (recipe.seed + number for number in range(recipe.train.seeds)):
        views[seed] = ReplayedViews(placed, labels, recipe.labels, run.normalize, seed)
        rows[seed] = first_rows(views[seed], recipe.train)
        shapes[seed] = array_shapes(rows[seed][-1], len(condensed.classes), recipe.labels.top_k)
    size = sum(math.prod(shape) * np.dtype(kind).itemsize for own in shapes.values() for shape, kind in own.values())
    num_views = sum(first[-1] for first in rows.values())
    run.log.say(f"relabel: {size:,} bytes of labels, of {num_views} views, in {folder}; on the fly they cost none")
    folder.mkdir(parents=True, exist_ok=True)
    held = (path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    check_room(folder, size, sum(held))
    digest = condensed.sha256
    for seed in views:
        manifest = {
            "format": FORMAT,
            "replay": replay_specification(recipe, condensed.classes, digest, teachers, seed),
            "first_rows": rows[seed],
        }
        source = TeacherLabels(teachers, recipe.labels, seed)
        _store(run, folder / f"seed{seed}", views[seed], source, manifest, shapes[seed])


def _store(
    run: Run,
    folder: Path,
    views: ReplayedViews,
    source: TeacherLabels,
    manifest: dict[str, Any],
    shapes: Shapes,
) -> None:
    path, rows, labels, train = folder / "manifest.json", manifest["first_rows"], run.recipe.labels, run.recipe.train
    done, digests = 0, list[str]()
    if path.exists():
        stored = _read_manifest(path)
        _check_same(folder, stored, manifest["replay"])
        done = _num_sound(folder, stored)
        if done < stored["epochs_done"]:
            run.log.say(f"relabel: {folder} is damaged: from epoch {done} on its labels are stored again")
        digests = stored["digests"][:done]
        if done >= train.epochs and stored["first_rows"][: len(rows)] == rows:
            return
        if stored["first_rows"] != rows:
            raise ValueError(
                f"{folder} holds labels of {len(stored['first_rows']) - 1} epochs, and train.epochs is {train.epochs}; "
                "choose another --labels.stored, or delete that folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    arrays = _open(folder, shapes, "r+") if done else _create(folder, shapes)
    for epoch in run.log.track(range(done, train.epochs), f"labels of seed {manifest['replay']['seed']}"):
        positions = np.arange(rows[epoch + 1] - rows[epoch])
        parts = split_batches(positions, train.batch_size) if len(positions) else []
        spans = [Span(epoch, int(part[0]), int(part[-1]) + 1) for part in parts]
        for batch in views.batches(spans) if spans else ():
            mean = source.logits(batch.images, batch.span).float().mean(0)
            first = rows[epoch] + batch.span.begin
            for name, values in compress(mean, labels.top_k, _temperature(train)).items():
                arrays[name][first : first + len(values)] = values.cpu().numpy()
        for array in arrays.values():
            array.flush()
        digests.append(stored_digest(arrays, rows, epoch))
        write_json(path, manifest | {"epochs_done": epoch + 1, "digests": digests})


def first_rows(views: ReplayedViews, train: Train) -> list[int]:
    """The row of every epoch's first view, and the number of rows. An epoch has those up to its last that is seen with
    a soft label.
    """
    counts = [0] * train.epochs
    for epoch in (number for number in range(train.epochs) if number not in train.hard_epochs):
        for span in views.spans(epoch, train):
            counts[span.epoch] = max(counts[span.epoch], span.end)
    return [0, *itertools.accumulate(counts)]


def replay_specification(
    recipe: Recipe, classes: Sequence[str], digest: str, teachers: Sequence[Teacher], seed: int
) -> dict[str, Any]:
    """All that decides the labels of a student, JSON-like; of epochs and batch size only what they depend on."""
    labels, train = recipe.parts("labels")["labels"], recipe.train
    for key in ("source", "stored"):
        del labels[key]
    is_pooled = recipe.labels.pool < 1
    has_parts = recipe.labels.is_in_training and train.batch_size % recipe.labels.batch_norm_size
    is_batched = is_pooled or has_parts or recipe.labels.ensemble == "norm-equalized"
    return {
        "generator": "Philox-4x32-10",
        "seed": seed,
        "classes": list(classes),
        "images_sha256": digest,
        "mean": list(recipe.dataset.mean),
        "std": list(recipe.dataset.std),
        "labels": labels,
        "teachers": {teacher.name: teacher.identity for teacher in teachers},
        "batch_size": train.batch_size if is_batched else None,
        "epochs": train.epochs if is_pooled else None,
        "temperature": _temperature(train) if recipe.labels.top_k else None,
        **({"prefix": train.prefix} if train.prefix else {}),
    }


def _temperature(train: Train) -> float | None:
    return None if train.loss == "mse_ce" else train.temperature


def _read_manifest(path: Path) -> StoredEpochs:
    stored = read_checked(path, StoredEpochs)
    if stored["first_rows"] != sorted(stored["first_rows"]):
        raise ValueError(f"{path} is damaged: field first_rows: expected growing numbers")
    if len(stored["digests"]) != stored["epochs_done"] or stored["epochs_done"] >= len(stored["first_rows"]):
        raise ValueError(f"{path} is damaged: field epochs_done: it has {len(stored['digests'])} digests")
    return stored


def stored_digest(arrays: Mapping[str, np.ndarray], first_rows: Sequence[int], epoch: int) -> str:
    """SHA-256 of the rows of an epoch in all arrays."""
    digest = hashlib.sha256()
    for _, array in sorted(arrays.items()):
        digest.update(array[first_rows[epoch] : first_rows[epoch + 1]].reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _num_sound(folder: Path, stored: StoredEpochs) -> int:
    """How many of the finished epochs, from the first on, have the rows that were written."""
    rows, replay = stored["first_rows"], stored["replay"]
    try:
        arrays = _open(folder, array_shapes(rows[-1], len(replay["classes"]), replay["labels"]["top_k"]), "r")
    except ValueError:
        return 0
    written = (stored_digest(arrays, rows, epoch) == digest for epoch, digest in enumerate(stored["digests"]))
    return sum(itertools.takewhile(bool, written))


def _check_same(folder: Path, stored: StoredEpochs, replay: dict[str, Any]) -> None:
    if stored["format"] != FORMAT:
        raise ValueError(f"{folder} holds labels of format {stored['format']}; this version reads {FORMAT}")
    if difference := first_difference(stored["replay"], replay):
        raise ValueError(
            f"{folder} holds labels of something else ({difference}); choose another --labels.stored, or delete it"
        )


def _create(folder: Path, shapes: Shapes) -> dict[str, np.memmap]:
    """Raises OSError if the disk is full: a row of a file with holes would end the process with a signal there."""
    arrays = {}
    for name, (shape, kind) in shapes.items():
        path = folder / f"{name}.npy"
        with writing(path):
            arrays[name] = np.lib.format.open_memmap(path, "w+", kind, shape)
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return arrays


def _open(folder: Path, shapes: Shapes, mode: Any) -> dict[str, np.memmap]:
    """Raises ValueError for a missing or damaged array."""
    arrays = {}
    for name, (shape, kind) in shapes.items():
        path = folder / f"{name}.npy"
        with reading(path):
            found = np.lib.format.open_memmap(path, "r")  # "r+" would make a file as long as it claims to be
            if found.shape != shape or found.dtype != kind:
                raise ValueError(f"{path} is damaged: {found.dtype} {found.shape}, not {np.dtype(kind)} {shape}")
            arrays[name] = found if mode == "r" else np.lib.format.open_memmap(path, mode)
    return arrays


# --- reading ---------------------------------------------------------------------------------------------------------


class StoredLabels:
    """Labels from a folder of one seed, of which rows are read when they are wanted.

    Raises ValueError if the labels are of something else than `replay` says, unfinished, of too few epochs, or damaged.
    """

    def __init__(self, folder: Path, replay: dict[str, Any], epochs: int, device: torch.device):
        path = folder / "manifest.json"
        if not path.exists():
            raise ValueError(f"there are no stored labels {path}; write them with relabel --store")
        manifest = _read_manifest(path)
        _check_same(folder, manifest, replay)
        self.rows, self.digests = manifest["first_rows"], manifest["digests"]
        if (num_stored := len(self.rows) - 1) < epochs:
            raise ValueError(f"{folder} holds labels of {num_stored} epochs, but train.epochs is {epochs}")
        if (done := manifest["epochs_done"]) < epochs:
            raise ValueError(f"{folder} is not finished ({done} of {num_stored} epochs); run relabel --store again")
        self.folder, self.num_classes, self.device = folder, len(replay["classes"]), device
        self.arrays = _open(folder, array_shapes(self.rows[-1], self.num_classes, replay["labels"]["top_k"]), "r")
        self.known: set[int] = set()
        """Epochs whose rows were seen to be those that were written."""

    def __call__(self, batch: ViewBatch) -> Wanted:
        return Wanted(self.logits(batch.span)[None], batch.labels, batch.partners, batch.share)

    def logits(self, span: Span) -> Tensor:
        """Float32 [B, classes] on the device. Raises ValueError for an epoch of other rows than were written."""
        if span.epoch not in self.known:
            if stored_digest(self.arrays, self.rows, span.epoch) != self.digests[span.epoch]:
                raise ValueError(f"{self.folder} is damaged: its labels of epoch {span.epoch} are not those written")
            self.known.add(span.epoch)
        first = self.rows[span.epoch] + span.begin
        rows = {name: self._moved(array[first : first + span.end - span.begin]) for name, array in self.arrays.items()}
        return rows["logits"].float() if len(rows) == 1 else expand(**rows, num_classes=self.num_classes)

    def _check_classes(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) and int(rows.max()) >= self.num_classes:
            raise ValueError(f"{self.folder}/classes.npy is damaged: class {rows.max()} of {self.num_classes}")
        return rows

    def _moved(self, rows: np.ndarray) -> Tensor:
        is_classes = rows.dtype.kind == "u"
        copy = torch.from_numpy(self._check_classes(rows).astype(np.int64) if is_classes else np.array(rows))
        is_cuda = self.device.type == "cuda"
        return (copy.pin_memory() if is_cuda else copy).to(self.device, non_blocking=True)


def read_labels(
    run: Run, condensed: CondensedSet, views: ReplayedViews, teachers: Sequence[Teacher], seed: int
) -> tuple[ReplayedViews, LabelSource]:
    """Views and labels of the student of a seed: the replayed views with our labels, or those of FKD files."""
    folder = stored_folder(run)
    if is_fkd(folder):
        found = read_fkd(run, folder, views, condensed.sha256)
        return found, found.wanted
    check_folder(folder)
    replay = replay_specification(run.recipe, condensed.classes, condensed.sha256, teachers, seed)
    labels = StoredLabels(folder / f"seed{seed}", replay, run.recipe.train.epochs, run.device)
    if labels.rows[: len(rows := first_rows(views, run.recipe.train))] != rows:
        raise ValueError(f"{labels.folder}/manifest.json is damaged: field first_rows: not those of the recipe's views")
    return views, labels
