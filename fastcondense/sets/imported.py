"""Published images in a run's folder: every stage then works as if they had been recovered there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.jobs import jobs
from ..data.real import Normalization
from ..files import first_difference, write_json
from ..log import Log
from ..recipe.recipe import Recipe
from ..recipe.settings import Dataset
from ..records import Origin, read_manifest
from ..squeeze.gate import is_chance, judge
from ..teachers.teacher import Teacher
from ..tensor_files import read_tensors
from .condensed import CondensedSet, read_set, shard_path, write_shard
from .published_sets import PublishedSet
from .stored_images import read


def read_origin(folder: Path) -> Origin | None:
    """The origin of a condensed set's images, if imported: path, layout, sha256; None if they were recovered."""
    path = folder / "manifest.json"
    return read_manifest(path).get("origin") if path.exists() else None


def import_images(published: PublishedSet, folder: Path, recipe: Recipe, log: Log) -> None:
    """Writes them as the shards that the recipe's jobs would make. Those that are there already must be the same.

    Raises ValueError if `folder` holds other images.
    """
    condensed, name = published.condensed, published.name
    identity = _identity(recipe, condensed.classes)
    origin: Origin = {"path": name, "layout": published.layout, "sha256": published.sha256}
    stored = None
    if any(folder.glob("shard-*.safetensors")):
        stored = read_origin(folder)
        if stored is None:
            raise ValueError(f"{folder} holds images that were recovered; choose another --out, or delete that folder")
        _check_identity(folder, identity)
    for text in published.said:
        log.say(f"images: {text}")
    todo = []
    for job in jobs(recipe, len(condensed.classes)):
        shard = shard_path(folder, job.index)
        if not shard.exists():
            todo.append(job)
        elif not torch.equal(read_tensors(shard)[0]["images"], condensed.some(job.classes(), job.slots())):
            raise ValueError(
                f"{folder} holds other images ({shard.name}) than {name}; choose another --out, or delete that folder"
            )
    if stored is None or stored["sha256"] != published.sha256:
        write_json(folder / "manifest.json", identity | {"origin": origin})
    metadata = {"seconds": "0", "images": "uint8 NCHW, RGB"}
    for job in todo:
        write_shard(folder, job, condensed.some(job.classes(), job.slots()), torch.zeros(0, 3), metadata)
    log.say(
        f"images: {condensed.num_images} of {len(condensed.classes)} classes imported from {name} "
        f"({published.layout}), sha256 {published.sha256[:12]}" + "; they were here already" * (not todo)
    )


def read_imported(folder: Path, recipe: Recipe, classes: tuple[str, ...]) -> CondensedSet:
    """The imported images. Raises ValueError if they do not fit the recipe, or if an import was interrupted."""
    _check_identity(folder, _identity(recipe, classes))
    try:
        return read_set(folder, jobs(recipe, len(classes)), recipe.ipc, classes)
    except ValueError as error:
        origin = read_origin(folder)
        raise ValueError(f"{error}; its images are imported: add --images {origin and origin['path']}") from None


def _identity(recipe: Recipe, classes: Sequence[str]) -> dict[str, Any]:
    """The identity of shards of imported images: all that they depend on."""
    layout = {key: getattr(recipe.recover, key) for key in ("batch_size", "slots_per_job", "classes_per_job")}
    tree: dict[str, Any] = {"dataset": {"image_size": recipe.dataset.image_size}, "recover": layout}
    if recipe.recover.slots_per_job != 1:
        tree["ipc"] = recipe.ipc
    return {"classes": list(classes), "recipe": tree}


def _check_identity(folder: Path, identity: dict[str, Any]) -> None:
    stored = read_manifest(folder / "manifest.json")
    if difference := first_difference({key: stored.get(key) for key in identity}, identity):
        raise ValueError(
            f"the images in {folder} were imported for another recipe ({difference}); choose another --out, or delete "
            "that folder, and import them again"
        )


# --- the gate --------------------------------------------------------------------------------------------------------


def check_order(
    folder: Path,
    condensed: CondensedSet,
    teachers: Sequence[Teacher],
    count: int,
    dataset: Dataset,
    device: torch.device,
    log: Log,
) -> None:
    """Says what the teachers make of the first `count` imported images a class, once a teacher.

    Raises ValueError if they know the images, but in another class order.
    """
    manifest = read_manifest(folder / "manifest.json")
    origin = manifest["origin"]
    known = origin.setdefault("top1", {})
    todo = [teacher for teacher in teachers if teacher.sha256 not in known]
    if not todo or count == 0:
        return
    pixels, labels = condensed.first(min(count, condensed.ipc)).unread()
    normalize = Normalization.of(dataset, device)
    for teacher in todo:
        parts = (read(pixels[begin : begin + 64]).to(device) for begin in range(0, len(pixels), 64))
        predicted = torch.cat([teacher.logits(normalize(part)).argmax(1).cpu() for part in parts])
        top1, text = judge_order(labels, predicted, condensed.classes)
        log.say(f"images: teacher {teacher.name} names {100 * top1:.1f} % of {len(labels)} imported images right{text}")
        known[teacher.sha256] = round(100 * top1, 2)
    write_json(folder / "manifest.json", manifest)


def judge_order(labels: Tensor, predicted: Tensor, classes: Sequence[str]) -> tuple[float, str]:
    """Share of images that a teacher names right, and what else there is to say of the classes' order.

    Raises ValueError if another order is clearly better (gate.judge). labels, predicted: int64 [N], of the classes.
    """
    count = len(labels)
    order = judge(labels, predicted, range(len(classes)), len(classes), predicted == labels)
    if order.moved:
        raise ValueError(
            f"the imported images are in another class order than the data set: a teacher names "
            f"{100 * order.hits / count:.0f} % of them right, and {100 * order.best_hits / count:.0f} % with "
            f"{len(order.moved)} classes renamed ({order.told(classes, classes, 'shows')})"
        )
    if is_chance(order.hits, count, len(classes)):
        return order.hits / count, ", as chance would" + "; no class order mends it" * (count > len(classes))
    return order.hits / count, ""
