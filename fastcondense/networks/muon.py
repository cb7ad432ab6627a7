"""Muon for the hidden weights of a network and AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Group = dict[str, Any]
"""A group of parameters, as torch's optimizers take it."""


class MuonAndAdamW:
    """Momentum whose updates are made orthogonal (Jordan et al., 2024) for hidden weights, and AdamW for all others.

    A convolution's weight [O, I, h, w] is taken as a matrix [O, I h w]. Updates are 0.2 sqrt(max(rows, columns)) times
    the orthogonal matrix, which is AdamW's size (Liu et al., arXiv 2502.16982), so that one learning rate serves both.
    torch.optim.Muon makes them orthogonal in bfloat16 on every device.
    """

    def __init__(self, hidden: Sequence[Group], others: Sequence[Group], lr: float, momentum: float):
        self.pairs: list[tuple[Tensor, nn.Parameter]] = []
        """Each hidden weight, and its matrix in the same memory."""
        groups = [group | {"params": [self._matrix(weight) for weight in group["params"]]} for group in hidden]
        muon = torch.optim.Muon(groups, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        self.parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(list(others), lr=lr, fused=True), muon]

    def _matrix(self, weight: Tensor) -> nn.Parameter:
        matrix = nn.Parameter(_by_memory(weight.detach(), weight).view(len(weight), -1))
        self.pairs.append((weight, matrix))
        return matrix

    @property
    def param_groups(self) -> list[Group]:
        """Those of both, AdamW's first."""
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:
        """What is kept of each parameter, of a hidden weight by its matrix."""
        return {parameter: kept for part in self.parts for parameter, kept in part.state.items()}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets all gradients, or makes them zeros."""
        self.parts[0].zero_grad(set_to_none)
        for weight, _ in self.pairs:
            if set_to_none or weight.grad is None:
                weight.grad = None
            else:
                weight.grad.zero_()

    def step(self) -> None:
        """Updates all parameters by their gradients."""
        for weight, matrix in self.pairs:
            matrix.grad = None if weight.grad is None else _by_memory(weight.grad, weight).flatten(1)
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes: of each of the two, its groups, and what it keeps of its parameters."""
        each = [part.state_dict() for part in self.parts]
        return {"state": [one["state"] for one in each], "param_groups": [one["param_groups"] for one in each]}

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave. Raises ValueError if it is not of these parameters."""
        for part, state, groups in zip(self.parts, found["state"], found["param_groups"], strict=True):
            part.load_state_dict({"state": state, "param_groups": groups})


AnyOptimizer = torch.optim.Optimizer | MuonAndAdamW


def _by_memory(values: Tensor, weight: Tensor) -> Tensor:
    """`values`, with the axes in the order in which those of `weight` lie in memory, so that rows are a view of it."""
    is_last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return values.permute(0, 2, 3, 1) if is_last else values
