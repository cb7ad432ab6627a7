"""Finished teachers in the folder of a run: where they are, what they are, and which of them a stage asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from ..files import read_tensors, slug, state_sha256
from ..networks import zoo
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
    return sum(float(read_tensors(path)[1]["seconds"]) for path in paths)


def teacher_bytes(run: Run) -> int:
    """Size of the teachers' weights on disk."""
    return sum(teacher_path(run.out, architecture).stat().st_size for architecture in run.recipe.squeeze.teachers)


def rebuild(architecture: str, state: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> nn.Module:
    """The network of a finished teacher's file. Raises ValueError if its weights are not those that it names."""
    if (found := state_sha256(state)) != metadata["sha256"]:
        raise ValueError(f"{path}: its weights have the sha256 {found[:12]}, but it names {metadata['sha256'][:12]}")
    net = zoo.build(architecture, int(metadata["num_outputs"]))
    net.load_state_dict(state)
    return net
