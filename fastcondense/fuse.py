"""Rewrites a frozen network so that every BatchNorm returns its moments: BN (+ add) (+ activation) fused."""

from __future__ import annotations

import copy
import operator

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .kernels.frozen_batch_norm import Activation, frozen_batch_norm
from .vision import torchvision
from .zoo import channels_last

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
_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout2d, torchvision.ops.StochasticDepth)  # in evaluation mode


class FrozenBatchNorm(nn.Module):
    """A BatchNorm in evaluation mode, with an optional residual and activation; keeps its input's last moments."""

    scale: Tensor
    shift: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d | nn.SyncBatchNorm, name: str):
        super().__init__()
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError(f"BatchNorm {name} has no running statistics to match")
        var = norm.running_var.double()
        weight = torch.ones_like(var) if norm.weight is None else norm.weight.detach().double()
        bias = torch.zeros_like(var) if norm.bias is None else norm.bias.detach().double()
        scale = weight / torch.sqrt(var + norm.eps)
        dtype = norm.running_mean.dtype
        self.register_buffer("scale", scale.to(dtype))
        self.register_buffer("shift", (bias - norm.running_mean.double() * scale).to(dtype))
        self.register_buffer("running_mean", norm.running_mean.detach().clone())
        self.register_buffer("running_var", norm.running_var.detach().clone())
        self.name = name
        self.activation: Activation = "none"
        self.moments: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        vectors = self.scale, self.shift, self.running_mean
        if residual is not None and residual.shape != x.shape:  # the addition broadcasts: leave it to torch
            y, mean, var = frozen_batch_norm(x, *vectors)
            y = y + residual
            if self.activation != "none":
                y = getattr(F, self.activation)(y)
        else:
            y, mean, var = frozen_batch_norm(x, *vectors, residual=residual, activation=self.activation)
        self.moments = (mean, var)
        return y


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (FrozenBatchNorm, *_IDENTITIES)) or super().is_leaf_module(module, name)


def fuse(net: nn.Module) -> tuple[nn.Module, list[FrozenBatchNorm], str | None]:
    """A frozen, fused copy of `net`, its BatchNorms in the order of net.modules(), and why tracing failed, if it did.

    A network that torch.fx cannot trace keeps its own forward; its BatchNorms are replaced one by one, and activations
    stay. Parameters are frozen, evaluation mode is set, and weights are channels_last. Raises ValueError for a
    BatchNorm without running statistics.
    """
    net = channels_last(copy.deepcopy(net).eval().requires_grad_(False))
    layers: dict[nn.Module, FrozenBatchNorm] = {}
    for name, module in list(net.named_modules(remove_duplicate=False)):
        if isinstance(module, _BATCH_NORMS):
            layer = layers.setdefault(module, FrozenBatchNorm(module, name))
            # timm's BatchNorm has an activation of its own: what is not absorbed follows as a module
            rest = [part for part in (getattr(module, "drop", None), getattr(module, "act", None)) if part is not None]
            rest = [part for part in rest if type(part) not in _IDENTITIES]
            if len(rest) == 1 and (activation := _activation_of(rest[0])) is not None:
                layer.activation, rest = activation, []
            net.set_submodule(name, nn.Sequential(layer, *rest) if rest else layer)
    try:
        graph = _Tracer().trace(net)
    except Exception as error:  # fx raises whatever the traced code raises on a proxy
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return net, list(layers.values()), reason
    modules = dict(net.named_modules(remove_duplicate=False))
    calls: dict[FrozenBatchNorm, list[fx.Node]] = {layer: [] for layer in layers.values()}
    for node in graph.nodes:
        module = modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, FrozenBatchNorm):
            calls[module].append(node)
        elif type(module) in _IDENTITIES and len(node.args) == 1 and not node.kwargs:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for layer, nodes in calls.items():
        if len(nodes) == 1:  # a BatchNorm that is called twice has two inputs, but one fused form
            _absorb(graph, nodes[0], layer, modules)
    graph.lint()
    return fx.GraphModule(net, graph), list(layers.values()), None


def _activation_of(module: nn.Module | None) -> Activation | None:
    """The activation that the module is, if the kernels have it: of exactly that type, with its usual settings."""
    if isinstance(module, nn.ReLU6) and (module.min_val, module.max_val) != (0, 6):
        return None
    return None if module is None else _ACTIVATION_MODULES.get(type(module))


def _absorb(graph: fx.Graph, node: fx.Node, layer: FrozenBatchNorm, modules: dict[str, nn.Module]) -> None:
    """Draws the add, the activation, or the add and the activation that are the only users of `node` into `layer`."""

    def absorb_activation(node: fx.Node) -> None:
        user = next(iter(node.users)) if len(node.users) == 1 else None
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

    if layer.activation != "none":
        return
    absorb_activation(node)
    user = next(iter(node.users)) if len(node.users) == 1 else None
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
