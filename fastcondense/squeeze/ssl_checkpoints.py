"""Checkpoints of self-supervised pretraining: which part of them is the backbone, and what is left out, and why.

MoCo v1 to v3, SwAV and DINO in the layouts of their published files, for any architecture: the backbone is
found by the names of the network that is wanted, under prefixes that say whose it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..teachers.weights import check_state, state_dict

_WRAPPERS = ("module", "_orig_mod", "model", "net")
_PRETRAINING = ("encoder_q", "base_encoder")  # what stands in their classifier's place is a projector
_BACKBONES = ("backbone", "encoder")
_LEFT_OUT = {
    "encoder_k": "momentum encoder",
    "momentum_encoder": "momentum encoder",
    "student": "the other network",
    "queue": "queue",
    "queue_ptr": "queue",
    "queue2": "queue",
    "predictor": "predictor",
    "projection_head": "projector",
    "projector": "projector",
    "head": "projector",
    "prototypes": "prototypes",
}


@dataclass(frozen=True)
class Imported:
    """The weights that were found in a checkpoint, under the network's own names."""

    state: dict[str, Tensor]
    """The backbone, and the classifier if there is one."""
    has_classifier: bool
    report: str
    """One line: what was recognised, taken and dropped."""


def is_self_supervised(loaded: Any, path: Path) -> bool:
    """Whether a checkpoint holds names that only self-supervised pretraining leaves."""
    if _has_both_networks(loaded):
        return True
    marks = {*_PRETRAINING, *_LEFT_OUT} - {"head"}
    return any(marks & set(name.split(".")[:3]) for name in state_dict(loaded, path))


def import_backbone(loaded: Any, wanted: Mapping[str, Tensor], classifier: str, path: Path) -> Imported:
    """The part of a checkpoint that is the network with the state dict `wanted`, whose classifier has that name.

    Where there are a teacher's weights and a student's (DINO), the teacher's are taken. Raises ValueError with the
    report if an entry of the backbone is missing (running statistics are, most of all, what is matched) or has another
    shape, or if there are entries that no known method explains.
    """
    if _has_both_networks(loaded):
        container, state = "teacher", state_dict(loaded["teacher"], path)
        dropped = {"the other network": [f"student: {name}" for name in loaded["student"]]}
    else:
        container, state, dropped = "", state_dict(loaded, path), {}
    backbone = [name for name in wanted if not _is_below(name, classifier)]
    known = {*_WRAPPERS, *_PRETRAINING, *_BACKBONES, "teacher"}
    prefix = _prefix(state, backbone, known)
    is_pretraining = bool(container or {*_PRETRAINING, "teacher"} & set(prefix.split(".")))
    taken: dict[str, Tensor] = {}
    unexpected = []
    for name, value in state.items():
        own = name.removeprefix(prefix)
        if name.startswith(prefix) and (own in wanted if not is_pretraining else own in backbone):
            taken[own] = value
        elif reason := _reason(name, prefix, classifier, known):
            dropped.setdefault(reason, []).append(name)
        else:
            unexpected.append(name)
    is_whole = {name for name in wanted if _is_below(name, classifier)} <= taken.keys()
    report = _report(_kind(state, prefix, classifier, container), prefix, len(taken), container, dropped)
    missing = [name for name in backbone if name not in taken and not name.endswith("num_batches_tracked")]
    if missing and all(name.endswith(("running_mean", "running_var")) for name in missing):
        lost = f"{missing[0]!r} ({len(missing)} such entries)"
        raise ValueError(f"checkpoint {path} lacks the running statistics {lost}. {report}")
    check_state(taken, {name: wanted[name] for name in backbone}, unexpected, f"checkpoint {path}", f" {report}")
    return Imported(taken, is_whole, report)


def _has_both_networks(loaded: Any) -> bool:
    return isinstance(loaded, Mapping) and all(isinstance(loaded.get(key), Mapping) for key in ("teacher", "student"))


def _is_below(name: str, module: str) -> bool:
    return name.startswith(f"{module}.")


def _prefix(state: Iterable[str], backbone: Iterable[str], known: set[str]) -> str:
    """The prefix of known words under which most of the backbone's names are."""
    names = set(state)
    prefixes = {"", *(name[: at + 1] for name in names for at, letter in enumerate(name) if letter == ".")}
    candidates = sorted(prefix for prefix in prefixes if {*prefix.split(".")} <= {*known, ""})
    return max(candidates, key=lambda prefix: sum(prefix + name in names for name in backbone))


def _reason(name: str, prefix: str, classifier: str, known: set[str]) -> str | None:
    """Why an entry beside the backbone is left out; None if there is no reason."""
    if name.startswith(prefix) and _is_below(name.removeprefix(prefix), classifier):
        return "projector"
    word = next((word for word in name.split(".") if word not in known), "")
    return "momentum encoder" if word.startswith("momentum_") else _LEFT_OUT.get(word)


def _kind(state: Mapping[str, Tensor], prefix: str, classifier: str, container: str) -> str:
    owners, words = prefix.split("."), {word for name in state for word in name.split(".")}
    if "encoder_q" in owners:
        return f"MoCo {'v1' if f'{prefix}{classifier}.weight' in state else 'v2'} pretraining"
    if "base_encoder" in owners:
        return "MoCo v3 pretraining"
    if words & {"prototypes", "projection_head"}:
        return "SwAV pretraining"
    return "DINO pretraining" if container or words & {"teacher", "student"} else "backbone's"


def _report(kind: str, prefix: str, count: int, container: str, dropped: Mapping[str, list[str]]) -> str:
    where = f"{container}: {prefix}" if container else prefix
    text = f"{kind} checkpoint: took {count} entries{f' of {where}' if where else ''}"
    parts = [f"{reason} ({len(names)}, {names[0]})" for reason, names in dropped.items()]
    return f"{text}; dropped {', '.join(parts) if parts else 'nothing'}"
