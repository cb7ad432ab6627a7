"""Finished teachers in the folder of a run: where they are, what they are, and which of them a stage asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from ..files import read_metadata, slug, state_sha256
from ..networks import zoo
from ..records import Count, Network, TeacherMetadata, checked, naming, parse_json
from ..run import Run
from .teacher import Teacher


def chosen(teachers: Sequence[Teacher], names: Sequence[str]) -> list[Teacher]:
    """Those of the given names, in the names' order; all of them if none is named."""
    by_name = {teacher.name: teacher for teacher in teachers}
    return [by_name[name] for name in names] if names else list(teachers)


def teacher_path(out: Path, architecture: str) -> Path:
    """Where a teacher's weights are kept in the folder of a run."""
    return out / "teachers" / slug(architecture) / "weights.safetensors"


def teacher_seconds(run: Run) -> float:
    """Seconds that the finished teachers took."""
    paths = [teacher_path(run.out, architecture) for architecture in run.recipe.squeeze.teachers]
    return sum(read_teacher(path)["seconds"] for path in paths)


def teacher_bytes(run: Run) -> int:
    """Size of the teachers' weights on disk."""
    return sum(teacher_path(run.out, architecture).stat().st_size for architecture in run.recipe.squeeze.teachers)


def read_teacher(path: Path) -> TeacherMetadata:
    """What the file of a finished teacher says of it."""
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
    checked(outputs, list[Count], source)
    if len(outputs) != num_classes or max(outputs) >= count:
        raise ValueError(f"{source} is damaged: field outputs: expected one of {count} a class, {num_classes} in all")
    net = zoo.build(architecture, count)
    with naming(source):
        net.load_state_dict(state)
    return net, outputs
