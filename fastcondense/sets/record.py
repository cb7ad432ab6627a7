"""What is kept of a job's way to its images, for the report: small copies of them, and every layer's matching loss."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..records import checked, parse_json


@dataclass(frozen=True)
class Snapshots:
    """Images uint8 [M, n, 3, s, s] before `iterations`, int64 [M]; classes: int64 [n]."""

    images: Tensor
    classes: Tensor
    iterations: Tensor


@dataclass(frozen=True)
class LayerLosses:
    """A teacher's share of the weighted matching loss in `iterations`, int64 [T]; losses: float32 [T, len(names)]."""

    teacher: str
    names: tuple[str, ...]
    iterations: Tensor
    losses: Tensor


@dataclass(frozen=True)
class Record:
    """The record of how a job's images formed, on the host."""

    snapshots: Snapshots | None = None
    layers: list[LayerLosses] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        """The record as tensors of a shard, beside `metadata`."""
        found: dict[str, Tensor] = {}
        if self.snapshots is not None:
            found |= {f"snapshots/{name}": tensor for name, tensor in vars(self.snapshots).items()}
        for number, table in enumerate(self.layers):
            found |= {f"layers/{number}/losses": table.losses, f"layers/{number}/iterations": table.iterations}
        return found

    def metadata(self) -> dict[str, str]:
        return {"layers": json.dumps([[table.teacher, table.names] for table in self.layers])}

    @staticmethod
    def of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Record:
        """The record read back from a shard, which may hold none of it. Raises ValueError if it cannot be one."""
        parts = {name.removeprefix("snapshots/"): t for name, t in tensors.items() if name.startswith("snapshots/")}
        snapshots = Snapshots(**parts) if parts else None
        if snapshots is not None:
            count, num, *rest = snapshots.images.shape
            _check("snapshots", snapshots.images, torch.uint8, (count, num, 3, rest[-1], rest[-1]))
            _check("snapshots", snapshots.classes, torch.int64, (num,))
            _check("snapshots", snapshots.iterations, torch.int64, (count,))
        layers = []
        known = checked(parse_json(metadata.get("layers", "[]"), "layers"), list[tuple[str, list[str]]], "layers")
        for number, (teacher, names) in enumerate(known):
            losses, iterations = tensors[f"layers/{number}/losses"], tensors[f"layers/{number}/iterations"]
            _check("losses of layers", losses, torch.float32, (len(losses), len(names)))
            _check("losses of layers", iterations, torch.int64, (len(losses),))
            layers.append(LayerLosses(teacher, tuple(names), iterations, losses))
        return Record(snapshots, layers)


def _check(what: str, tensor: Tensor, kind: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != kind or tensor.shape != shape:
        raise ValueError(f"its {what} are {tensor.dtype} {tuple(tensor.shape)}, not {kind} {shape}")
