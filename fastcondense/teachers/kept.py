"""Finished teachers in the folder of a run: where they are, what they are, and which of them a stage asks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import trust
from ..files import first_difference, slug
from ..loaders.reading import naming, read_file
from ..networks import zoo
from ..recipe.settings import PixelStatistics, Squeeze
from ..records import Color, Network, Sha256, TeacherMetadata, checked, parse_json
from ..run import Run
from ..tensor_files import read_metadata, read_tensors, state_sha256, write_tensors
from .teacher import Teacher
from .weights import checkpoint_of


def read_teachers(run: Run) -> list[Teacher]:
    """The recipe's teachers on the run's device, which `squeeze` has made; they are read once.

    Raises ValueError for one that is missing, or was made by another recipe.
    """
    if not run.kept.get("teachers"):
        run.kept["teachers"] = [_read(run, architecture) for architecture in run.recipe.squeeze.teachers]
    found: list[Teacher] = run.kept["teachers"]
    return found


def _read(run: Run, architecture: str) -> Teacher:
    check_kept(run, architecture)
    path = teacher_path(run.out, architecture)
    state, kept = read_tensors(path)[0], read_teacher(path)
    net, outputs = rebuild(architecture, state, kept, len(run.real.classes), path)
    return frozen(run, net, architecture, outputs, read_statistics(kept, path))


def check_kept(run: Run, architecture: str) -> None:
    """Raises ValueError for a teacher that is missing, or was made by another recipe."""
    path = teacher_path(run.out, architecture)
    if not path.exists():
        raise ValueError(f"there is no teacher {path}; run squeeze first")
    known = read_teacher(path)
    if difference := first_difference(parse_json(known["identity"], path), teacher_identity(run, architecture)):
        raise ValueError(
            f"{path} is a teacher of another recipe ({difference}); choose another --out, or delete that file"
        )
    before = checked(parse_json(known.get("files", "{}"), path), dict[str, Sha256], path)
    for setting, sha256 in files_sha256(run, architecture).items():
        if before.get(setting, sha256) != sha256:
            raise ValueError(
                f"{path} was made when the file of {setting} held something else; choose another --out, or delete "
                f"{path.parent}"
            )


def lend_teachers(run: Run, other: Run) -> None:
    """Puts the finished teachers of a run into the folder of another one that lacks them, as if it had made them."""
    for architecture in run.recipe.squeeze.teachers:
        check_kept(run, architecture)
        path = teacher_path(other.out, architecture)
        if not path.exists():
            state, metadata = read_tensors(teacher_path(run.out, architecture))
            write_tensors(path, state, metadata | {"identity": json.dumps(teacher_identity(other, architecture))})


def teacher_identity(run: Run, architecture: str) -> dict[str, Any]:
    """All that decides a teacher: the settings of squeeze, the data's classes, and which network it is."""
    return run.identity("squeeze") | {"architecture": architecture, "classes": list(run.real.classes)}


def files_sha256(run: Run, architecture: str) -> dict[str, str]:
    """Hashes of the files that settings name for a teacher, by setting; a stranger's recipe has no file opened."""
    settings = run.recipe.squeeze
    checkpoint = checkpoint_of(settings.sources[architecture])
    named = {
        "squeeze.weights": (settings.sources[architecture], checkpoint[0] if checkpoint else None),
        "squeeze.probe_weights": (probe := probe_of(settings, settings.teachers.index(architecture)), Path(probe)),
        "squeeze.classes_file": (settings.classes_file, Path(settings.classes_file)),
    }
    opened = {key: path for key, (text, path) in named.items() if path is not None and trust.is_given(text)}
    return {setting: hashlib.sha256(read_file(path)).hexdigest() for setting, path in opened.items() if path.is_file()}


def probe_of(settings: Squeeze, number: int) -> str:
    """The probe of a teacher, by its place among them, in squeeze.probe_weights; empty if it has none."""
    return next(iter(settings.probe_weights[number:] or settings.probe_weights[:1]), "")


def read_statistics(known: Network | TeacherMetadata, source: object) -> PixelStatistics | None:
    """Statistics that normalise a finished teacher's inputs, where these are not the data set's mean and deviation."""
    if (text := known.get("pixel_statistics")) is None:
        return None
    tree = parse_json(text, source)
    if tree == [None, None]:
        return None
    (r, g, b), (dr, dg, db) = checked(tree, tuple[Color, Color], source)
    return (r, g, b), (dr, dg, db)


def frozen(
    run: Run, net: nn.Module, architecture: str, outputs: Sequence[int], statistics: PixelStatistics | None
) -> Teacher:
    """The network as a teacher with the statistics that recover is going to match, on the run's device.

    statistics: mean and deviation that its inputs are normalised by, if not the data set's.
    """
    recipe, classes = run.recipe, run.real.classes
    matched = recipe.recover.statistics, recipe.recover.patch_size
    has_unfused = recipe.labels.is_in_training and architecture in (recipe.labels.teachers or recipe.squeeze.teachers)
    made = Teacher.of(net, architecture, classes, outputs, recipe.dataset, *matched, has_unfused, statistics)
    return made.to(run.device)


def chosen(teachers: Sequence[Teacher], names: Sequence[str]) -> list[Teacher]:
    """The teachers of the given names, in the names' order; all of them if none is named."""
    by_name = {teacher.name: teacher for teacher in teachers}
    return [by_name[name] for name in names] if names else list(teachers)


def labelling_teachers(run: Run) -> list[Teacher]:
    """The teachers whose labels students are trained on (labels.teachers), as `read_teachers` reads them."""
    return chosen(read_teachers(run), run.recipe.labels.teachers)


def teacher_path(out: Path, architecture: str) -> Path:
    """The file of a teacher's weights in the folder of a run."""
    return out / "teachers" / slug(architecture) / "weights.safetensors"


def teacher_seconds(run: Run) -> float:
    """Seconds that the finished teachers took."""
    paths = [teacher_path(run.out, architecture) for architecture in run.recipe.squeeze.teachers]
    return sum(read_teacher(path)["seconds"] for path in paths)


def teacher_bytes(run: Run, architectures: Sequence[str]) -> int:
    """Size of these teachers' weights on disk."""
    return sum(teacher_path(run.out, architecture).stat().st_size for architecture in architectures)


def read_teacher(path: Path) -> TeacherMetadata:
    """The metadata in the file of a finished teacher."""
    return checked(read_metadata(path), TeacherMetadata, path, is_text=True)


def rebuild(
    architecture: str, state: Mapping[str, Tensor], known: Network | TeacherMetadata, num_classes: int, source: object
) -> tuple[nn.Module, list[int]]:
    """The network of a finished teacher, and its output of each class.

    Raises ValueError that names the source if its weights are not those that are known of it, or not the network's.
    """
    if (found := state_sha256(state)) != known["sha256"]:
        raise ValueError(f"{source}: its weights have the sha256 {found[:12]}, but it names {known['sha256'][:12]}")
    count, outputs = known["num_outputs"], parse_json(known["outputs"], source)
    if not any(count in tensor.shape[:1] for tensor in state.values()):  # before anything of that size is built
        raise ValueError(f"{source} is damaged: none of its weights has {count} outputs")
    is_list = isinstance(outputs, list) and all(type(output) is int and 0 <= output < count for output in outputs)
    if not is_list or len(outputs) != num_classes:
        raise ValueError(f"{source} is damaged: field outputs: expected one of {count} a class, {num_classes} in all")
    for name, shape in zoo.shapes(architecture, count).items():  # before a network that may be larger is built
        if name not in state or state[name].shape != shape:
            found = "none" if name not in state else f"one of {tuple(state[name].shape)}"
            raise ValueError(f"{source} is damaged: {architecture} has a tensor {name} of {shape}, it has {found}")
    net = zoo.build(architecture, count)
    with naming(source):
        net.load_state_dict(state)
    return net, outputs
