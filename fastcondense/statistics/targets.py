"""Target statistics: what the moments of a teacher's layers should be, from real images (G-VBSM and EDC)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import trust
from ..data.jobs import Job
from ..data.real import square_batches
from ..devices import stopwatch
from ..files import tree_sha256
from ..networks.precision import arithmetic
from ..rng import Stream
from ..run import Run
from ..teachers.kept import teacher_path
from ..teachers.moments import Moments
from ..teachers.teacher import Teacher
from ..tensor_files import Form, read_kept, write_tensors
from ..workers.work import Items, draw
from .collection import Collection, NamedVectors
from .collector import Collector
from .published_statistics import PublishedStatistics


def complete(run: Run, teachers: Sequence[Teacher]) -> None:
    """Gives teachers the targets that their BatchNorms do not hold, and those of each class if the recipe has category
    targets: read from the run's folder, taken from published files, or collected and kept.

    They are collected on one epoch of the training images, seen as the teachers' own training sees them; the images are
    read once for all teachers. All workers of a launch call this, and share the images; the targets do not depend on
    how many there are.
    """
    todo = _wanted(run, teachers)
    missing = {path: collector for path, collector in todo.items() if not path.exists()}
    if missing:
        collection = Collection(run, missing)
        with stopwatch(run.device) as watch, arithmetic("fp32"):
            if not (imported := bool(run.recipe.recover.statistics_files)):
                collection.collect()
            keep(collection, (lambda: _imported(run, missing)) if imported else collection.joined)
        run.log.event("targets", teachers=len(missing), seconds=watch.seconds)
    for path, collector in todo.items():
        vectors, tables = read_targets(path, collector, run.recipe.dataset.image_size)
        for name, of in vectors.items():
            collector.teacher.targets[name] = tuple(vector.to(run.device) for vector in of)
        collector.teacher.class_targets |= tables


def keep(collection: Collection, find: Callable[[], dict[Path, tuple[NamedVectors, NamedVectors]]]) -> None:
    """Writes what `find` gives into the files that are to keep it; of several workers, one does in the end."""
    missing, name, folder = collection.collectors, collection.folder.name, collection.folder.parent
    work = Items(name.replace("parts", "targets"), folder, [0], lambda _: all(map(Path.exists, missing)))
    for _ in draw(work):
        try:
            found = find()
        except ValueError:
            if not all(map(Path.exists, missing)):  # else this process was frozen, and others have joined the parts
                raise
            continue
        for path, (vectors, class_vectors) in found.items():
            layers = vectors | {_of_classes(name): tables for name, tables in class_vectors.items()}
            tensors = {f"{name}/{k}": vector for name, layer in layers.items() for k, vector in enumerate(layer)}
            write_tensors(path, tensors, {"teacher": missing[path].teacher.sha256})
    collection.remove()


def _wanted(run: Run, teachers: Sequence[Teacher]) -> dict[Path, Collector]:
    """The collectors of those teachers that lack targets, by the file that keeps what is collected."""
    recover = run.recipe.recover
    has_classes = "category" in recover.targets
    wanted: dict[Path, Collector] = {}
    for teacher in teachers:
        teacher.class_variance, teacher.swapped_patches = recover.class_variance, recover.swapped_patches
        names = [layer.name for layer in teacher.layers if layer.name not in teacher.targets]
        lacks_classes = has_classes and any(layer.name not in teacher.class_targets for layer in teacher.layers)
        if names or lacks_classes:
            num_classes = len(run.real.classes) if lacks_classes else 0
            collector = Collector(teacher, names, num_classes, recover.class_variance)
            wanted[_path(run, collector)] = collector
    return wanted


def read_targets(path: Path, collector: Collector, image_size: int) -> tuple[NamedVectors, NamedVectors]:
    """The targets that the file keeps of what the collector collects, and those of each class, on the host.

    Raises ValueError for a file that keeps others.
    """
    every = collector.lengths(image_size) if collector.names else {}
    lengths, of_classes = {name: every[name] for name in collector.names}, collector.class_lengths(image_size)
    forms: dict[str, Form] = {}
    for name, found in lengths.items():
        forms |= {f"{name}/{k}": (torch.float32, [length]) for k, length in enumerate(found)}
    for name, found in of_classes.items():
        rows = [collector.num_classes]
        forms |= {f"{_of_classes(name)}/{k}": (torch.float32, [*rows, length]) for k, length in enumerate(found)}
    state = read_kept(path, forms)

    def vectors(prefix: str, found: list[int]) -> tuple[Tensor, ...]:
        return tuple(state[f"{prefix}/{k}"] for k in range(len(found)))

    tables = {name: vectors(_of_classes(name), found) for name, found in of_classes.items()}
    return {name: vectors(name, found) for name, found in lengths.items()}, tables


def _path(run: Run, collector: Collector) -> Path:
    """The file of the targets, beside the teacher's weights, named after all that decides them."""
    recover, teacher = run.recipe.recover, collector.teacher
    identity = run.identity("squeeze") | {
        "teacher": teacher.sha256,
        "layers": list(collector.names),
        "statistics": sorted(recover.statistics),
        "patch_size": recover.patch_size,
    }
    if collector.num_classes:
        identity |= {"class_layers": [layer.name for layer in teacher.layers], "variance": recover.class_variance}
    if recover.statistics_files:
        identity |= {"files": _published(run, collector).fingerprint()}
    return teacher_path(run.out, teacher.name).with_name(f"targets-{tree_sha256(identity)[:8]}.safetensors")


def _published(run: Run, collector: Collector) -> PublishedStatistics:
    recover, has_classes = run.recipe.recover, collector.num_classes > 0
    if has_classes and recover.class_variance == "full":
        raise ValueError("recover.statistics_files hold within-image variances; recover.class_variance cannot be full")
    folder = trust.path(recover.statistics_files, "recover.statistics_files")
    return PublishedStatistics(folder, collector.teacher, collector.names, has_classes)


def _imported(run: Run, missing: Mapping[Path, Collector]) -> dict[Path, tuple[NamedVectors, NamedVectors]]:
    size, found = run.recipe.dataset.image_size, {}
    for path, collector in missing.items():
        published = _published(run, collector)
        found[path] = published.targets(size), published.class_targets(size, run.log)
    return found


def wanted_moments(teacher: Teacher, kind: str, job: Job) -> Moments:
    """What a teacher's moments should be for the images of a job, by a kind of recover.targets, on its device."""
    if kind == "difficulty":
        return group_moments(teacher, job.first_slot)
    return teacher.matched_targets() if kind == "global" else teacher.category_targets(job.classes())


def group_moments(teacher: Teacher, group: int) -> Moments:
    """What a teacher's moments should be for images of a group, on its device. Raises ValueError if `grade` was not
    asked, or the group is none of its.
    """
    if teacher.layers and group >= min((len(v[0]) for v in teacher.group_targets.values()), default=0):
        raise ValueError(f"teacher {teacher.name} has no statistics of group {group} of difficulty")
    return [
        tuple(v[group].to(teacher.outputs.device) for v in teacher.group_targets[one.name]) for one in teacher.layers
    ]


def _of_classes(name: str) -> str:
    """The name in a file of a layer's tables."""
    return f"{name}/class"


def class_images(run: Run, purpose: str, repeats: int) -> Callable[[Job], Tensor]:
    """Random training images of the classes of a job, `repeats` for each of its images, mirrored with probability 1/2.

    Normalised evaluation squares, float32 [num_images * repeats, 3, S, S], channels_last, on the run's device. They
    depend on (seed, purpose, class, slot) alone, and the slots of a class have different ones while there are any. With
    dataset.on_error "skip", images that cannot be read are missing; ValueError if none can.
    """
    stream, split = Stream(run.recipe.seed, purpose), run.real.train

    def images(job: Job) -> Tensor:
        classes = job.classes().numpy().repeat(repeats)
        places = (job.slots().numpy()[:, None] * repeats + np.arange(repeats)).ravel()
        orders = {
            label: (members := split.of_class(label))[stream.permutation(len(members), label)]
            for label in np.unique(classes).tolist()
        }
        ids = np.array([orders[k][place % len(orders[k])] for k, place in zip(classes, places, strict=True)])
        wanted, which = np.unique(ids, return_inverse=True)
        parts = list(square_batches(split, run.recipe.dataset, run.device, ids=wanted))
        run.report_skipped(split)
        if not parts:
            raise ValueError(f"none of the {len(wanted)} training images that {purpose} needs can be read")
        pixels, read = (torch.cat(part) for part in zip(*parts, strict=True))
        is_read = np.isin(wanted, read.cpu().numpy())
        rows = (np.cumsum(is_read) - 1)[which][is_read[which]]
        x = run.normalize(pixels[torch.from_numpy(rows).to(run.device)])
        is_mirrored = torch.from_numpy(stream.uniform(classes, places, 1)[0] < 0.5)[torch.from_numpy(is_read[which])]
        return torch.where(is_mirrored.to(run.device)[:, None, None, None], x.flip(3), x)

    return images
