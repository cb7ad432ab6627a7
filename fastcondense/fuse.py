"""Rewrites a frozen network so that every BatchNorm returns its moments: BN, BN + ReLU, and BN + add + ReLU fused."""

from __future__ import annotations

import copy
import operator

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .kernels.frozen_batch_norm import frozen_batch_norm
from .zoo import channels_last

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_ADDS = (operator.add, operator.iadd, torch.add)
_RELUS = (F.relu, torch.relu, F.relu_, torch.relu_)


class FrozenBatchNorm(nn.Module):
    """A BatchNorm in evaluation mode, with an optional residual and ReLU; keeps its input's last moments."""

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
        self.name, self.relu = name, False
        self.moments: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if residual is not None:
            residual = residual.expand_as(x)
        y, mean, var = frozen_batch_norm(
            x, self.scale, self.shift, self.running_mean, residual=residual, relu=self.relu
        )
        self.moments = (mean, var)
        return y


def fuse(net: nn.Module) -> tuple[nn.Module, list[FrozenBatchNorm], str | None]:
    """A frozen, fused copy of `net`, its BatchNorms in the order of net.modules(), and why tracing failed, if it did.

    A network that torch.fx cannot trace keeps its own forward; its BatchNorms are replaced one by one, and ReLUs stay.
    Parameters are frozen, evaluation mode is set, and weights are channels_last. Raises ValueError for a BatchNorm
    without running statistics.
    """
    net = channels_last(copy.deepcopy(net).eval().requires_grad_(False))
    layers = {
        name: FrozenBatchNorm(module, name) for name, module in net.named_modules() if isinstance(module, _BATCH_NORMS)
    }
    plain = {name for name in layers if type(net.get_submodule(name)) in _BATCH_NORMS}
    for name in layers.keys() - plain:
        # timm's BatchNorm with an activation of its own: the activation follows as a module
        norm = net.get_submodule(name)
        rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        net.set_submodule(name, nn.Sequential(layers[name], *rest))
    try:
        graph_module, reason = fx.symbolic_trace(net), None
    except Exception as error:  # fx raises whatever the traced code raises on a proxy
        graph_module, reason = None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if graph_module is None:
        for name in plain:
            net.set_submodule(name, layers[name])
        return net, list(layers.values()), reason
    _fuse_graph(graph_module, {name: layers[name] for name in plain})
    return graph_module, list(layers.values()), None


def _fuse_graph(module: fx.GraphModule, layers: dict[str, FrozenBatchNorm]) -> None:
    modules = dict(module.named_modules())
    calls: dict[str, list[fx.Node]] = {name: [] for name in layers}
    for node in module.graph.nodes:
        if node.op == "call_module" and node.target in layers:
            calls[node.target].append(node)
    for name, nodes in calls.items():
        module.set_submodule(name, layers[name])
        if len(nodes) == 1:  # a BatchNorm that is called twice has two inputs, but one fused form
            _absorb(module.graph, nodes[0], layers[name], modules)
    module.graph.lint()
    module.recompile()


def _absorb(graph: fx.Graph, node: fx.Node, layer: FrozenBatchNorm, modules: dict[str, nn.Module]) -> None:
    """Draws the ReLU, or the add and the ReLU, that are the only users of `node` into `layer`."""

    def only_user(of: fx.Node) -> fx.Node | None:
        return next(iter(of.users)) if len(of.users) == 1 else None

    def is_relu(user: fx.Node | None) -> bool:
        if user is None:
            return False
        if user.op == "call_module":
            return type(modules.get(str(user.target))) is nn.ReLU
        return (user.op == "call_function" and user.target in _RELUS) or (
            user.op == "call_method" and user.target in ("relu", "relu_")
        )

    user = only_user(node)
    if user is not None and is_relu(user):
        layer.relu = True
        user.replace_all_uses_with(node)
        graph.erase_node(user)
        return
    if user is None or user.op != "call_function" or user.target not in _ADDS or len(user.args) != 2 or user.kwargs:
        return
    relu = only_user(user)
    others = [arg for arg in user.args if arg is not node]
    if relu is None or not is_relu(relu) or len(others) != 1 or not isinstance(others[0], fx.Node):
        return
    layer.relu = True
    with graph.inserting_before(relu):
        fused = graph.call_module(str(node.target), (node.args[0], others[0]))
    relu.replace_all_uses_with(fused)
    for dead in (relu, user, node):
        graph.erase_node(dead)
