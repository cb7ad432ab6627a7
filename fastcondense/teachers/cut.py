"""The beginning of a teacher's network: all that a module of it reads, and nothing behind; its last features."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable
from itertools import accumulate

from torch import Tensor, fx, nn

from ..networks.encoders import classifier_name
from .moments import Keeper, idle
from .teacher import Teacher


class Cut(nn.Module):
    """x: normalised [N, 3, H, W] -> the input of the module `layer` of the teacher's network, float32 [N, ...].

    A module of others, such as a ResNet's layer3, reads what the first of them does; one that is called several times
    is met at its first call. Weights are shared with the teacher. Raises ValueError if torch.fx could not trace the
    network, and for a name that it does not have or that was fused with the BatchNorm in front of it, with near names.
    """

    def __init__(self, teacher: Teacher, layer: str):
        super().__init__()
        if not isinstance(teacher.fused, fx.GraphModule):
            raise ValueError(
                f"features need a network that torch.fx can trace; teacher {teacher.name} is not: {teacher.note}"
            )
        graph = copy.deepcopy(teacher.fused.graph)
        wanted = _input_of(graph, layer)
        if wanted is None:
            names = list(dict.fromkeys(name for node in graph.nodes for name in _owners(node)))
            near = difflib.get_close_matches(layer, names, 3, 0.0)
            raise ValueError(
                f"teacher {teacher.name} has no module {layer!r} whose input could be matched; near: {', '.join(near)}"
            )
        for node in reversed(graph.nodes):
            if node.op == "output":
                node.args = (wanted,)
            elif node is wanted:
                break
            else:
                graph.erase_node(node)
        graph.lint()
        self.net = fx.GraphModule(teacher.fused, graph)
        self.dtype, self.adapted = teacher.dtype, teacher.adapted
        self.keepers = [module for module in self.net.modules() if isinstance(module, Keeper)]

    def forward(self, x: Tensor) -> Tensor:
        with idle(self.keepers, x.device):
            features = self.net(self.adapted(x))
        for keeper in self.keepers:
            keeper.forget()
        return features.float() if self.dtype is not None else features


class Hooked(nn.Module):
    """x: normalised [N, 3, H, W] -> the input, float32, of the module `layer` of a teacher that could not be traced.

    The whole network runs, and what the module is called with is kept meanwhile.
    """

    def __init__(self, teacher: Teacher, layer: str):
        super().__init__()
        self.teacher, self.dtype, self.layer = teacher, teacher.dtype, teacher.fused.get_submodule(layer)

    def forward(self, x: Tensor) -> Tensor:
        seen = list[Tensor]()
        hook = self.layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            with idle(self.teacher.keepers, x.device):
                self.teacher(x)
        finally:
            hook.remove()
        return seen[0].float()


def backbone(teacher: Teacher) -> Cut | Hooked:
    """The network that gives what a teacher has before its classifier, float32 [N, D], of normalised images.

    Raises ValueError if the logits are not made by one nn.Linear.
    """
    classifier = classifier_name(teacher.name)
    return (Cut if isinstance(teacher.fused, fx.GraphModule) else Hooked)(teacher, classifier)


def penultimate(teacher: Teacher) -> tuple[Callable[[Tensor], Tensor], str]:
    """The function that gives what a teacher has before its classifier, of normalised images; the classifier's name.

    Its logits and "" where these are not made by one nn.Linear.
    """
    try:
        return backbone(teacher), classifier_name(teacher.name)
    except ValueError:
        return teacher.logits, ""


def _input_of(graph: fx.Graph, layer: str) -> fx.Node | None:
    """The first value from outside that the module `layer` reads."""
    inside = {node for node in graph.nodes if layer in _owners(node)}
    for node in graph.nodes:
        if node in inside:
            for source in node.all_input_nodes:
                if source not in inside and source.op != "get_attr":
                    return source
    return None


def _owners(node: fx.Node) -> list[str]:
    """Names of the modules in whose forward the node is, the outermost first."""
    target = str(node.target).split(".") if node.op == "call_module" else []
    traced = [name for name in node.meta.get("nn_module_stack", {}) if "@" not in name]  # pool@1 is pool's second call
    return list(dict.fromkeys((*accumulate(target, "{}.{}".format), *traced)))
