"""State dicts in the checkpoints of others: found in what a file holds, copied into a network if all entries fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..loaders.reading import naming

_CHECKPOINTS = (".pt", ".pth", ".tar", ".th", ".ckpt", ".bin", ".safetensors")
_CONTAINERS = ("state_dict", "model", "model_state_dict", "net", "teacher")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.")


def checkpoint_of(weights: str) -> tuple[Path, str] | None:
    """The checkpoint that squeeze.weights names, and the key in it: FILE or FILE:KEY; None if it names none."""
    path, _, key = weights.rpartition(":")
    named = [(Path(weights), "")] + ([(Path(path), key)] if path else [])
    return next((pair for pair in named if pair[0].suffix in _CHECKPOINTS or pair[0].exists()), None)


def load_weights(net: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copies a checkpoint's state dict into `net`, strictly: common prefixes are stripped, all names must match.

    Raises ValueError that names the first missing, unexpected, misshapen or infinite entry; `path` is for the message.
    """
    wanted = net.state_dict()
    state = _strip_prefixes(state, wanted)
    check_state(state, wanted, [key for key in state if key not in wanted], f"checkpoint {path}")
    with naming(path, "checkpoint {path} cannot be read as weights: {error}"):
        if odd := next((key for key in wanted if key in state and not bool(state[key].isfinite().all())), None):
            raise ValueError(f"checkpoint {path}: {odd!r} has values that are not finite")
        net.load_state_dict({**wanted, **state})


def check_state(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], unexpected: Sequence[str], what: str, more: str = ""
) -> None:
    """Raises ValueError, from `what` to `more`, if an entry is missing, unexpected, or of another shape than wanted."""
    # old checkpoints lack the counters that BatchNorm keeps beside its statistics
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    for problem, keys in (("lacks", missing), ("has the unexpected", unexpected)):
        if keys:
            raise ValueError(f"{what} {problem} {keys[0]!r} ({len(keys)} such entries): another architecture?{more}")
    for key, value in wanted.items():
        if key in state and state[key].shape != value.shape:
            shapes = f"{tuple(state[key].shape)}, the network {tuple(value.shape)}"
            raise ValueError(f"{what}: {key!r} has shape {shapes}{'.' * bool(more)}{more}")


def head_size(state: Mapping[str, Tensor], small: Mapping[str, Tensor], large: Mapping[str, Tensor]) -> int | None:
    """Outputs of the network in a checkpoint, or None if it lacks a head of that architecture: what differs in state
    dicts of it with n and n + 1 outputs, small and large."""
    state, sizes = _strip_prefixes(state, small), set[int | None]()
    for key, value in small.items():
        found = list(state[key].shape) if key in state else []
        for axis, (n, more) in enumerate(zip(value.shape, large[key].shape, strict=True)):
            if more == n + 1:  # a head of other shapes, even an empty one, could claim any number
                fits = len(found) == value.dim() and [*found[:axis], n, *found[axis + 1 :]] == [*value.shape]
                sizes.add(found[axis] if fits else None)
    return sizes.pop() if len(sizes) == 1 else None


def _strip_prefixes(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state without prefixes that all its entries share, until some of its names are wanted."""
    while not state.keys() & wanted.keys():
        prefix = next((p for p in _PREFIXES if state and all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a checkpoint file holds, bare or in a usual container. Raises ValueError if none is."""
    return choose_state(loaded, path, "")[0]


def choose_state(loaded: Any, path: Path, key: str) -> tuple[dict[str, Tensor], str]:
    """The state dict under `key` ("a", or "a.b") of a checkpoint, or without a key the bare or usual one, and what to
    say where it holds several, such as weights and their moving average.

    Raises ValueError if there is none, or none of a usual name among several.
    """
    found = _state_dicts(loaded)
    if key:
        if key not in found:
            known = f"it has {', '.join(found)}" if any(found) else "none of its weights has a name"
            raise ValueError(f"checkpoint {path} holds no weights under {key!r}; {known}")
        return found[key], ""
    usual = [name for container in ("", *_CONTAINERS) for name in found if name.split(".")[0] == container]
    if not usual and len(found) != 1:
        several = f"; name one of {', '.join(found)} in squeeze.weights, FILE:KEY" if found else ""
        raise ValueError(f"checkpoint {path} holds no state dict (looked under {', '.join(_CONTAINERS)}){several}")
    first = (usual or list(found))[0]
    others = [name for name in found if name != first]
    said = f"checkpoint {path} holds several weights: {first} is taken, not {', '.join(others)}"
    return found[first], f"{said}; squeeze.weights {path}:{others[0]} takes that" if others else ""


def _state_dicts(loaded: Any, prefix: str = "", depth: int = 0) -> dict[str, dict[str, Tensor]]:
    """Every mapping of names to tensors with weights among them, by the keys that lead to it; "" is the file itself."""
    if not isinstance(loaded, Mapping) or not loaded or depth > 3:
        return {}
    if all(isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()):
        return {prefix: dict(loaded)} if any(value.dim() > 1 for value in loaded.values()) else {}
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in loaded.items():
        if isinstance(name, str):
            found |= _state_dicts(value, f"{prefix}.{name}" if prefix else name, depth + 1)
    return found
