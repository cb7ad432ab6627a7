"""Counts the bytes and launches of a step without trusting a clock: PyTorch's operators and our own kernels.

An operator that is no view reads its inputs once, writes its outputs once and is one launch. A Triton kernel reads and
writes the arguments that `KERNELS` names, once each, and is not executed: shapes do not depend on values. Both are
lower bounds: caches that are too small for an operator's own re-reads cost more. Everything is counted on CPU tensors.
"""

from __future__ import annotations

import bisect
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Access:
    """The tensors that a Triton kernel reads and writes, each once: arguments without their `_ptr`.

    `name:A,B|C` holds if A and one of B and C hold: of constexprs, `FLAG`, `!FLAG`, `NAME=value` or `!NAME=value`. What
    `gathers` names is read more than once, by neighbouring elements or in a second walk over a row; those re-reads are
    cache hits and are not counted. A tensor that goes by two names counts once.
    """

    reads: str
    writes: str
    gathers: str = ""

    def tensors(self, names: str, arguments: dict[str, Any]) -> list[Tensor]:
        """The arguments behind `names` whose conditions hold."""

        def holds(test: str) -> bool:
            name, has_value, value = test.removeprefix("!").partition("=")
            found = str(arguments[name]) == value if has_value else bool(arguments[name])
            return found != test.startswith("!")

        found: dict[int, Tensor] = {}
        for name, _, conditions in (item.partition(":") for item in names.split()):
            if all(any(map(holds, tests.split("|"))) for tests in conditions.split(",") if tests):
                found.setdefault(arguments[f"{name}_ptr"].data_ptr(), arguments[f"{name}_ptr"])
        return list(found.values())


KERNELS = {
    "channel_moments.combine_kernel": Access("partial center y_partial y_center", "mean var y_mean y_var"),
    "frozen_batch_norm.forward_kernel": Access(
        "x residual:HAS_RESIDUAL scale shift center output_center:HAS_OUTPUT", "y sign:SAVE_SIGN partial"
    ),
    "frozen_batch_norm.backward_kernel": Access(
        "x dy:HAS_DY kept:HAS_DY|HAS_OUTPUT,!KEPT=nothing shift:HAS_DY|HAS_OUTPUT,!KEPT=y scale "
        "mean:HAS_INPUT dmean:HAS_INPUT dvar:HAS_INPUT y_mean:HAS_OUTPUT dy_mean:HAS_OUTPUT dy_var:HAS_OUTPUT",
        "dx dresidual:HAS_DRESIDUAL",
    ),
    "frozen_batch_norm_pool.forward_kernel": Access(
        "x scale shift center output_center", "y argmax partial output_partial:HAS_OUTPUT", "x"
    ),
    "frozen_batch_norm_pool.backward_kernel": Access(
        "x dy argmax scale shift mean:HAS_INPUT dmean:HAS_INPUT dvar:HAS_INPUT "
        "y_mean:HAS_OUTPUT dy_mean:HAS_OUTPUT dy_var:HAS_OUTPUT",
        "dx",
        "dy argmax",
    ),
    "feature_maps.forward_kernel": Access("x map_center center:HAS_CHANNELS", "map channel:HAS_CHANNELS", "x"),
    "feature_maps.combine_maps_kernel": Access("partial", "map"),
    "feature_maps.backward_kernel": Access(
        "x dy:HAS_DY map_center dmap mean:HAS_CHANNELS dmean:HAS_CHANNELS dvar:HAS_CHANNELS", "dx", "x dmap"
    ),
    "crop.forward_kernel": Access("images windows gain:HAS_GAIN offset:HAS_OFFSET", "output", "images"),
    "crop.share_kernel": Access("windows", "share"),
    "crop.backward_kernel": Access("dout windows share gain:HAS_GAIN", "dimages", "dout share"),
    "pixel_adam.step_kernel": Access(
        "images gradient first second rate step corrections low high", "images first second", "corrections"
    ),
    "replay_crop.replay_kernel": Access(  # of the images, as if every one were asked for
        "images ids windows partners:HAS_BOX|HAS_SHARE partner_windows:HAS_BOX|HAS_SHARE boxes:HAS_BOX "
        "share:HAS_SHARE gain offset",
        "output",
        "images",
    ),
    "soft_label.divergence_kernel": Access("student teachers", "loss direction:HAS_GRADIENT", "student teachers"),
    "soft_label.hard_kernel": Access(
        "student teachers:E labels partners share", "loss direction:HAS_GRADIENT", "student"
    ),
    "soft_label.sum_kernel": Access("loss", "result"),
    "soft_label.scale_kernel": Access("direction dloss", "dstudent"),
}


class Record(NamedTuple):
    """One launch: the part of the step and of the network that it belongs to, its name, bytes read and written."""

    part: str
    layer: str
    name: str
    read: int
    written: int


_NOT_RUN = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "is_same_size"}
_GATHERS = {"index", "index_select", "embedding"}  # read what they write, and the indices
_WRITES_ONLY = {"copy_", "fill_", "zero_", "normal_", "uniform_"}
# In evaluation mode the gradient of BatchNorm is a multiple of dy; that of a convolution needs the weight, not x, and
# that of a pooling the indices: shapes alone are taken from the rest.
_READS = {
    "native_batch_norm_backward": (0,),
    "convolution_backward": (0, 2),
    "max_pool2d_with_indices_backward": (0, 7),
}


def size_of(x: Tensor) -> int:
    """Bytes of a tensor's distinct elements: expanded dimensions count once."""
    count = 1
    for extent, stride in zip(x.shape, x.stride(), strict=True):
        count *= extent if stride else 1
    return count * x.element_size()


class Meter(TorchDispatchMode):
    """Records every launch inside it, with the part of the step and the layer that were entered last.

    Backward operators belong to what was entered when their autograd node was made; a sum of gradients belongs to the
    node that delivered the last of them.
    """

    def __init__(self, on_host: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.records: list[Record] = []
        self.syncs = 0
        """Values that the host has waited for; what is `on_host` anyway costs no wait."""
        self.uploads = 0
        """Tensors that are made of the host's numbers, each of which a GPU copies: a captured step may have none."""
        self._on_host = {x.data_ptr() for x in on_host}
        self.sizes: dict[tuple[str, str], int] = {}
        self._entered = ("image", "")
        self._starts: list[int] = [0]
        self._places = [self._entered]

    def enter(self, part: str, layer: str = "") -> None:
        """What follows belongs to this part and layer."""
        self._entered = (part, layer)
        self._starts.append(torch.autograd._get_sequence_nr())
        self._places.append(self._entered)

    def add(self, name: str, reads: Iterable[Tensor], writes: Iterable[Tensor]) -> None:
        """One launch."""
        node = torch._C._current_autograd_node()
        if node is not None:
            self._entered = self._places[bisect.bisect_right(self._starts, node._sequence_nr()) - 1]
        self.records.append(Record(*self._entered, name, sum(map(size_of, reads)), sum(map(size_of, writes))))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        outputs = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        schema = function._schema
        if name == "_local_scalar_dense":
            self.syncs += args[0].data_ptr() not in self._on_host
        self.uploads += name in ("lift_fresh", "lift")
        is_view = any(result.alias_info and not result.alias_info.is_write for result in schema.returns)
        if is_view or name in _NOT_RUN or name == "_local_scalar_dense":
            return outputs
        kept = [args[k] for k in _READS[name]] if name in _READS else (args, kwargs)
        reads = _tensors(kept)[1 if name in _WRITES_ONLY or name in _GATHERS else 0 :]
        reads += _tensors(outputs) if name in _GATHERS else []
        named = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | kwargs
        changed = [named.get(a.name) for a in schema.arguments if a.alias_info and a.alias_info.is_write]
        self.add(name, reads, {id(x): x for x in _tensors((outputs, changed))}.values())
        return outputs

    def follow(self, net: nn.Module, part_of: Callable[[nn.Module], str | None]) -> None:
        """Enters a part whenever a module that `part_of` knows begins, and "loss" when `net` has ended.

        A module that has a `name` is the layer of that name, wherever it is.
        """
        for name, module in net.named_modules():
            part = part_of(module)
            if part is not None:
                module.register_forward_pre_hook(self._arrive(part, getattr(module, "name", name)))
        net.register_forward_hook(lambda *_: self.enter("loss"))

    def _arrive(self, part: str, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def arrive(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.enter(part, name)
            self.sizes[part, name] = size_of(inputs[0])

        return arrive


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


Launch = Callable[[str, dict[str, Any], Callable[[], None]], None]


@contextmanager
def launches(see: Launch) -> Iterator[None]:
    """Hands every Triton launch to `see`, as its name, its arguments and what executes it, instead of executing it.

    GPU kernels are chosen for CPU tensors too.
    """
    from triton.runtime.jit import KernelInterface

    launch = KernelInterface.__getitem__

    def index(kernel: Any, grid: Any) -> Callable[..., None]:
        *_, folder, stem = kernel.fn.__module__.split(".")  # <operator>.gpu, or common.<stem>_gpu
        name = f"{folder if stem == 'gpu' else stem.removesuffix('_gpu')}.{kernel.fn.__name__}"
        signature = inspect.signature(kernel.fn)

        def run(*args: Any, **kwargs: Any) -> None:
            known = {key: value for key, value in kwargs.items() if key in signature.parameters}
            see(name, signature.bind(*args, **known).arguments, lambda: launch(kernel, grid)(*args, **kwargs))

        return run

    with (
        mock.patch.object(KernelInterface, "__getitem__", index),
        mock.patch.object(torch.Tensor, "is_cuda", property(lambda _: True)),
    ):
        yield


@contextmanager
def metered(meter: Meter) -> Iterator[None]:
    """Everything inside is counted by `meter`; what follows a backward pass belongs to the part "update"."""

    def see(name: str, arguments: dict[str, Any], _: Callable[[], None]) -> None:
        access = KERNELS[name]
        meter.add(name, access.tensors(access.reads, arguments), access.tensors(access.writes, arguments))

    def then_update(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            meter.enter("update")
            return result

        return call

    with (
        launches(see),
        mock.patch.object(torch.autograd, "grad", then_update(torch.autograd.grad)),
        mock.patch.object(torch.autograd, "backward", then_update(torch.autograd.backward)),
        meter,
    ):
        yield
