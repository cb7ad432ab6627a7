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
        if residual is not None and residual.shape != x.shape:  # the addition broadcasts: leave it to torch
            y, mean, var = frozen_batch_norm(x, self.scale, self.shift, self.running_mean)
            y = torch.relu(y + residual)
        else:
            y, mean, var = frozen_batch_norm(
                x, self.scale, self.shift, self.running_mean, residual=residual, relu=self.relu
            )
        self.moments = (mean, var)
        return y


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, FrozenBatchNorm) or super().is_leaf_module(module, name)


def fuse(net: nn.Module) -> tuple[nn.Module, list[FrozenBatchNorm], str | None]:
    """A frozen, fused copy of `net`, its BatchNorms in the order of net.modules(), and why tracing failed, if it did.

    A network that torch.fx cannot trace keeps its own forward; its BatchNorms are replaced one by one, and ReLUs stay.
    Parameters are frozen, evaluation mode is set, and weights are channels_last. Raises ValueError for a BatchNorm
    without running statistics.
    """
    net = channels_last(copy.deepcopy(net).eval().requires_grad_(False))
    layers: dict[nn.Module, FrozenBatchNorm] = {}
    for name, module in list(net.named_modules(remove_duplicate=False)):
        if isinstance(module, _BATCH_NORMS):
            layer = layers.setdefault(module, FrozenBatchNorm(module, name))
            # timm's BatchNorm has an activation of its own: that follows as a module
            rest = [part for part in (getattr(module, "drop", None), getattr(module, "act", None)) if part is not None]
            net.set_submodule(name, nn.Sequential(layer, *rest) if rest else layer)
    try:
        graph = _Tracer().trace(net)
    except Exception as error:  # fx raises whatever the traced code raises on a proxy
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return net, list(layers.values()), reason
    modules = dict(net.named_modules(remove_duplicate=False))
    calls: dict[FrozenBatchNorm, list[fx.Node]] = {layer: [] for layer in layers.values()}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(modules[str(node.target)], FrozenBatchNorm):
            calls[modules[str(node.target)]].append(node)
    for layer, nodes in calls.items():
        if len(nodes) == 1:  # a BatchNorm that is called twice has two inputs, but one fused form
            _absorb(graph, nodes[0], layer, modules)
    graph.lint()
    return fx.GraphModule(net, graph), list(layers.values()), None


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
    relu, x = only_user(user), node.args[0]
    others = [arg for arg in user.args if arg is not node]
    if relu is None or not is_relu(relu) or len(others) != 1 or not isinstance(others[0], fx.Node):
        return
    if not isinstance(x, fx.Node) or len(x.users) > 1:
        return  # the BatchNorm moves to the addition; until then somebody else could change its input in place
    layer.relu = True
    with graph.inserting_before(user):
        fused = graph.call_module(str(node.target), (x, others[0]))
    relu.replace_all_uses_with(fused)
    for dead in (relu, user, node):
        graph.erase_node(dead)
