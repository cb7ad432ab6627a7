"""Rewrites a frozen network so that its BatchNorms, and convolutions if asked, keep the moments of their inputs.

BatchNorms are fused with the activation, or the addition and the activation, or the stem's max-pooling behind them; a
convolution's moments are those that such a BatchNorm takes of what it writes, wherever that is what it reads.
"""

from __future__ import annotations

import collections
import copy
import operator
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import fx, nn
from torch.nn import functional as F

from .. import vision
from ..kernels.frozen_batch_norm import Activation
from ..networks.zoo import channels_last
from .convolution import adopt
from .moments import BatchNormKeeper, ConvolutionTap, Keeper, Kept, Layer

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_ADDS = (operator.add, operator.iadd, torch.add)
_ACTIVATION_MODULES: dict[type[nn.Module], Activation] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}
_ACTIVATION_FUNCTIONS: dict[object, Activation] = {
    F.relu: "relu",
    F.relu_: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    "relu": "relu",  # x.relu()
    "relu_": "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hardswish",
}


def _identities() -> tuple[type[nn.Module], ...]:
    """Layers that change nothing in evaluation mode."""
    return nn.Identity, nn.Dropout, nn.Dropout2d, *vision.stochastic_depth()


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        is_ours = isinstance(module, (Keeper, nn.Conv2d, nn.GroupNorm, *_identities()))
        return is_ours or super().is_leaf_module(module, name)


def fuse(
    net: nn.Module, statistics: Collection[str] = ("bn",), patch_size: int = 16
) -> tuple[nn.Module, list[Layer], str | None]:
    """A frozen, fused copy of `net`, its layers that keep moments in the order of net.modules(), and why tracing
    failed, if it did.

    statistics: any of "bn" (inputs of BatchNorms), "conv" (channels of convolutions' inputs) and "patch" (patches of
    patch_size x patch_size pixels of the latter). A network that torch.fx cannot trace keeps its own forward; its
    BatchNorms are replaced one by one, and activations stay. Parameters are frozen, evaluation mode is set, and weights
    are channels_last. Raises ValueError for a BatchNorm without running statistics.
    """
    net = channels_last(copy.deepcopy(net).eval().requires_grad_(False))
    for part in net.modules():
        adopt(part)
    layers = _replace(net, statistics, patch_size)
    try:
        graph = _Tracer().trace(net)
    except Exception as error:  # fx raises whatever the traced code raises on a proxy
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return net, layers, reason
    modules = dict(net.named_modules(remove_duplicate=False))
    calls: dict[BatchNormKeeper, list[fx.Node]] = {}
    for node in graph.nodes:
        module = modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, BatchNormKeeper):
            calls.setdefault(module, []).append(node)
        elif (node.op, node.target) == ("call_method", "view") and not isinstance(node.args[-1], torch.dtype):
            node.target = "reshape"  # maps are channels_last, which people's x.view(N, -1) does not expect
        elif type(module) in _identities() and len(node.args) == 1 and not node.kwargs:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for norm, nodes in calls.items():
        if len(nodes) == 1:  # a BatchNorm that is called twice has two inputs, but one fused form
            _absorb(graph, nodes[0], norm, modules)
    _share(graph, modules, layers)
    graph.lint()
    return fx.GraphModule(net, graph), layers, None


def _replace(net: nn.Module, statistics: Collection[str], patch_size: int) -> list[Layer]:
    """Puts frozen BatchNorms in the place of BatchNorms, and taps in front of convolutions; in place."""
    layers: dict[nn.Module, Layer] = {}
    made: dict[nn.Module, nn.Module] = {}
    has_channels, has_patches = "conv" in statistics, "patch" in statistics
    for name, module in list(net.named_modules(remove_duplicate=False)):
        if isinstance(module, _BATCH_NORMS):
            if module not in made:
                norm = BatchNormKeeper(module, name)
                if "bn" in statistics:
                    layers[module] = Layer(name, [(norm, "input")])
                # timm's BatchNorm has an activation of its own: what is not absorbed follows as a module
                found = [getattr(module, attribute, None) for attribute in ("drop", "act")]
                rest = [part for part in found if part is not None and type(part) not in _identities()]
                if len(rest) == 1 and (activation := _activation_of(rest[0])) is not None:
                    norm.activation, rest = activation, []
                made[module] = nn.Sequential(norm, *rest) if rest else norm
            net.set_submodule(name, made[module])
        elif isinstance(module, nn.Conv2d) and (has_channels or has_patches):
            if module not in made:
                tap = ConvolutionTap(module, name, has_channels, patch_size if has_patches else None)
                parts: list[tuple[Keeper, Kept]] = [(tap, "input")] if has_channels else []
                layers[module] = Layer(name, parts + ([(tap, "patches")] if has_patches else []))
                made[module] = nn.Sequential(tap, module)
            net.set_submodule(name, made[module])
    return list(layers.values())


def _is_stem_pool(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    pool = modules.get(str(node.target)) if node.op == "call_module" else None
    return type(pool) is nn.MaxPool2d and (
        pool.kernel_size in (3, (3, 3))
        and pool.stride in (2, (2, 2))
        and pool.padding in (1, (1, 1))
        and pool.dilation in (1, (1, 1))
        and not pool.ceil_mode
        and not pool.return_indices
    )


def _share(graph: fx.Graph, modules: Mapping[str, nn.Module], layers: Sequence[Layer]) -> None:
    """Takes no moments twice: convolutions that read the same map share a tap, and a tap behind a frozen BatchNorm
    leaves the channels' moments to it."""
    called = [node for node in graph.nodes if node.op == "call_module"]
    calls = collections.Counter(str(node.target) for node in called)
    first: dict[object, tuple[fx.Node, ConvolutionTap]] = {}
    for node in called:
        tap, source = modules[str(node.target)], node.args[0]
        if not isinstance(tap, ConvolutionTap) or calls[str(node.target)] > 1:
            continue
        if source in first:
            same, other = first[source]
            _rename(layers, (tap, "input"), (other, "input"))
            _rename(layers, (tap, "patches"), (other, "patches"))
            node.replace_all_uses_with(same)
            graph.erase_node(node)
            continue
        first[source] = (node, tap)
    for source, (_, tap) in first.items():
        if not isinstance(source, fx.Node) or source.op != "call_module" or calls[str(source.target)] > 1:
            continue
        norm = modules[str(source.target)]
        if isinstance(norm, BatchNormKeeper) and tap.has_channels:
            norm.keeps_output, tap.has_channels = True, False
            _rename(layers, (tap, "input"), (norm, "output"))


def _rename(layers: Sequence[Layer], old: tuple[Keeper, Kept], new: tuple[Keeper, Kept]) -> None:
    for layer in layers:
        layer.parts = [new if part == old else part for part in layer.parts]


def _activation_of(module: nn.Module | None) -> Activation | None:
    """The activation that the module is, if the kernels have it: of exactly that type, with its usual settings."""
    if isinstance(module, nn.ReLU6) and (module.min_val, module.max_val) != (0, 6):
        return None
    return None if module is None else _ACTIVATION_MODULES.get(type(module))


def _absorb(graph: fx.Graph, node: fx.Node, layer: BatchNormKeeper, modules: dict[str, nn.Module]) -> None:
    """Draws an addition, an activation or the stem's pool into `layer`, where they are the only users of `node`."""

    def only_user(node: fx.Node) -> fx.Node | None:
        return next(iter(node.users)) if len(node.users) == 1 else None

    def absorb_activation(node: fx.Node) -> None:
        user = only_user(node)
        if user is None or user.all_input_nodes != [node]:
            return
        if user.op == "call_module":
            activation = _activation_of(modules[str(user.target)])
        else:
            activation = _ACTIVATION_FUNCTIONS.get(user.target)
        if activation is not None:
            layer.activation = activation
            user.replace_all_uses_with(node)
            graph.erase_node(user)

    if layer.activation == "none":  # timm's has one already
        absorb_activation(node)
    user = only_user(node)
    if layer.activation == "relu" and user is not None and _is_stem_pool(user, modules):
        layer.has_pool = True
        user.replace_all_uses_with(node)
        graph.erase_node(user)
    if layer.activation != "none" or user is None or user.op != "call_function" or user.target not in _ADDS:
        return
    if len(user.args) != 2 or user.kwargs:
        return
    x, others = node.args[0], [arg for arg in user.args if arg is not node]
    if len(others) != 1 or not isinstance(others[0], fx.Node):
        return
    if not isinstance(x, fx.Node) or len(x.users) > 1:
        return  # the BatchNorm moves to the addition; until then somebody else could change its input in place
    with graph.inserting_before(user):
        fused = graph.call_module(str(node.target), (x, others[0]))
    user.replace_all_uses_with(fused)
    graph.erase_node(user)
    graph.erase_node(node)
    absorb_activation(fused)
