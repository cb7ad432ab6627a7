"""What a peer is: a repository and an adapter that runs its step on given images and a given network."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import fastcondense.vision  # noqa: F401  scripts import torchvision, which beside a CPU build of torch needs this first

from .isolation import Overlay, isolated, on_device
from .paused import PausedLoop
from .repository import Absent, Repository

CLASSES = 1000  # that the published scripts for ImageNet-1k are written for
SIZE = 224  # likewise
FOR_EVER = 10**9  # iterations


@dataclass(frozen=True)
class Setting:
    """What every variant of a method is given."""

    network: str
    net: nn.Module
    """CLASSES classes, in evaluation; each variant takes a copy."""
    images: Tensor
    """Initial images, normalised float32 [N, 3, S, S]; also the real images of methods that read some."""
    ipc: int
    """Images of a class, where the step's cost depends on them."""
    device: torch.device
    scratch: Path
    """An empty folder for whatever scripts write."""

    @property
    def size(self) -> int:
        return self.images.shape[-1]

    @property
    def count(self) -> int:
        return len(self.images)

    @property
    def jitter(self) -> int:
        """The largest roll: 32 pixels of 224, as published, and in proportion elsewhere."""
        return 32 * self.size // SIZE

    def frozen(self) -> nn.Module:
        """A copy of the network, frozen, in evaluation and on the device."""
        return copy.deepcopy(self.net).to(self.device).eval().requires_grad_(False)


@dataclass
class Step:
    """A step that can be timed, and what was changed for it."""

    advance: Callable[[], object]
    adaptations: tuple[str, ...] = ()
    close: Callable[[], None] = field(default=lambda: None)


class Peer(Protocol):
    """An adapter. `what` says in a line which published lines run in a step."""

    repository: Repository
    what: str

    def prepare(self, folder: Path, setting: Setting) -> Step:
        """Imports the script in the repository's folder and brings it to its first step."""


@dataclass(frozen=True)
class Unavailable:
    """Why a peer has no figure: absent, with the reason, or failed, with its error."""

    status: str
    reason: str


def begun(prepare: Callable[[], Step]) -> Step | Unavailable:
    """The step that is prepared after one call, or why there is none. Nothing that it raises ends the benchmark."""
    step = None
    try:
        step = prepare()
        step.advance()
        return step
    except Absent as reason:
        return Unavailable("absent", str(reason))
    except ModuleNotFoundError as error:
        return Unavailable("absent", f"it needs {error.name}, which is not installed")
    except Exception as error:
        with contextlib.suppress(Exception):
            if step is not None:
                step.close()
        return Unavailable("failed", describe(error))


def prepared(peer: Peer, peers: Path | None, setting: Setting) -> Step | Unavailable:
    """The step of a peer whose repository is below `peers`."""
    return begun(lambda: peer.prepare(peer.repository.folder(peers), setting))


def describe(error: BaseException) -> str:
    """An error in a line."""
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0]}" if words else type(error).__name__


def load(folder: Path, scripts: Sequence[str], setting: Setting, **options: Any) -> list[ModuleType]:
    """The modules `scripts` of a folder, imported in isolation (with its `options`); they do not print."""
    with isolated(folder, setting.scratch, **options), on_device(setting.device):
        modules = []
        for script in scripts:
            with contextlib.redirect_stdout(io.StringIO()):
                modules.append(importlib.import_module(script))
    for module in modules:
        module.print = lambda *_, **__: None
    return modules


def on_cpu(setting: Setting) -> tuple[str, ...]:
    """What `on_device` changes, in words."""
    return () if setting.device.type == "cuda" else (f'"cuda" means {setting.device.type}',)


def recover_loop(module: ModuleType, setting: Setting, run: Callable[[], None], *changes: str) -> Step:
    """A recover script's own loop, paused where an iteration begins: where it sets its learning rate.

    module: the script, whose loop `run` calls. Its images are drawn by torch.randn: the given ones take their place.
    """
    given, size = setting.images.detach().to(setting.device), setting.size
    transforms, adaptations = module.transforms, list(changes)
    module.torch = Overlay(torch, randn=lambda *_, **__: given.clone().requires_grad_())
    adaptations.append("starts from the given images")
    if size != SIZE:
        module.transforms = Overlay(
            transforms, RandomResizedCrop=lambda _, **options: transforms.RandomResizedCrop(size, **options)
        )
        adaptations.append(f"crops of {size} pixels in place of {SIZE}")
    policy = module.lr_cosine_policy

    def loop(pause: Callable[[], None]) -> None:
        def paused_policy(*arguments: Any) -> Callable[..., None]:
            schedule = policy(*arguments)

            def scheduled(*now: Any) -> None:
                pause()
                schedule(*now)

            return scheduled

        module.lr_cosine_policy = paused_policy
        run()

    paused = PausedLoop(loop, lambda: on_device(setting.device))
    return Step(paused, (*adaptations, *on_cpu(setting)), paused.close)
