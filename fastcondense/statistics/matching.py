"""Matching of a batch's moments with their targets: weighted distances (SRe2L, G-VBSM and EDC)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..teachers.moments import Moments


class Matching:
    """sum_k a_k sum_l w_l sum_v ||s_lv - s*_klv||_2 over target sets k, layers l and their vectors v: a scalar.

    target_sets: (a_k, what the moments should be), all of the same shapes. layer_weights: [L]. The gradient of a norm
    at distance 0 is 0, as that of torch.norm.

    With ema > 0, the value that is compared is the running mean e <- ema e + (1 - ema) s over the calls, and its
    gradient that of s alone (straight through); e starts at the first s, or at zero as in the published EDC.

    All buffers are static: targets and running means are changed in place, and nothing is read by the host. Without
    layers the loss is zero, and depends on nothing. Raises ValueError for shapes that do not fit.
    """

    def __init__(
        self,
        target_sets: Sequence[tuple[float, Moments]],
        layer_weights: Tensor,
        ema: float = 0.0,
        ema_start: Literal["first", "zero"] = "first",
    ):
        self.ema, self.ema_start = ema, ema_start
        self.layout = _layout(target_sets[0][1])
        if len(layer_weights) != len(self.layout):
            raise ValueError(f"matching of {len(self.layout)} layers got weights of {len(layer_weights)}")
        device, num_sets = layer_weights.device, len(target_sets)
        vectors = torch.tensor([len(layer) for layer in self.layout], dtype=torch.int64, device=device)
        lengths = torch.tensor([n for layer in self.layout for n in layer], dtype=torch.int64, device=device)
        self.vectors = vectors
        layers = torch.repeat_interleave(vectors)  # [V]: the layer that each vector belongs to
        shares = torch.tensor([share for share, _ in target_sets], dtype=torch.float64, device=device)
        self.layer_of_number = layers.repeat_interleave(lengths)  # [S]
        self.layer_of_vector = layers.repeat(num_sets)  # [K V], as lengths and weights
        self.lengths = lengths.repeat(num_sets)
        self.vector_of = torch.repeat_interleave(self.lengths)  # [K S]: the vector that each number belongs to
        self.weights = (shares[:, None] * layer_weights.double()[layers]).flatten()
        self.terms = torch.zeros_like(self.weights)
        """Weighted distances of the last call, whose sum it gave."""
        self.targets = torch.stack([self._flat(moments) for _, moments in target_sets])  # [K, S]
        self.average = torch.zeros_like(self.targets[0])
        self.rate = torch.empty_like(self.average)
        """Share of the difference to the next value that the running mean takes: 1 before the first one."""
        self.reset()

    def set_targets(self, which: int, moments: Moments) -> None:
        """Replaces a target set, in place."""
        self.targets[which].copy_(self._flat(moments))

    def reset(self) -> None:
        """Forgets the running mean, in place."""
        self.average.zero_()
        self.rate.fill_(1 - self.ema if self.ema_start == "zero" else 1.0)

    def state(self) -> dict[str, Tensor]:
        """The running mean and how it goes on, copied."""
        return {"average": self.average.clone(), "rate": self.rate.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on, in place, with the running mean of another matching of the same layers."""
        for name, buffer in (("average", self.average), ("rate", self.rate)):
            if name not in state or state[name].shape != buffer.shape:
                got = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(f"matching needs a running {name} of shape {tuple(buffer.shape)}, got {got}")
            buffer.copy_(state[name])

    def __call__(self, moments: Moments, live: Tensor | None = None) -> Tensor:
        """live: bool [L], the layers that are matched this time; None: all.

        A layer that is not adds nothing, has no gradient, and its running mean stays as it is (G-VBSM's drop).
        """
        if not self.layout:
            return self.targets.new_zeros(())
        values = torch.cat([vector for layer in moments for vector in layer])
        compared = self._follow(values.detach(), live) if self.ema else values.detach()
        weights = self.weights if live is None else self.weights * live[self.layer_of_vector]
        return _Distances.apply(values, compared, self.targets, weights, self.lengths, self.vector_of, self.terms)

    def layer_losses(self) -> Tensor:
        """What each layer added to the result of the last call, float64 [L]."""
        terms = self.terms.view(len(self.targets), -1).sum(0)
        return torch.segment_reduce(terms, "sum", lengths=self.vectors, unsafe=True)

    def _follow(self, values: Tensor, live: Tensor | None) -> Tensor:
        if live is None:
            self.average.lerp_(values, self.rate)
            self.rate.fill_(1 - self.ema)
        else:
            is_live = live[self.layer_of_number]
            self.average.lerp_(values, self.rate * is_live)
            self.rate.masked_fill_(is_live, 1 - self.ema)
        return self.average

    def _flat(self, moments: Moments) -> Tensor:
        if _layout(moments) != self.layout:
            raise ValueError(f"matching needs targets of the lengths {self.layout}, got {_layout(moments)}")
        vectors = [vector for layer in moments for vector in layer]
        return torch.cat(vectors) if vectors else torch.empty(0, device=self.lengths.device)


class _Distances(torch.autograd.Function):
    """sum_i weights_i norm_i over the segments i of the flattened [K, S] differences of what is compared from targets.

    The gradient is that of values, as if they were what is compared. Sums are float64, and are left in `terms` too.
    """

    @staticmethod
    def forward(ctx, values, compared, targets, weights, lengths, vector_of, terms):
        differences = (compared - targets).flatten()
        # of each segment, summed in float64
        squares = torch.segment_reduce(differences.double().square(), "sum", lengths=lengths, unsafe=True)
        distances = squares.sqrt_()
        slopes = torch.where(distances == 0, 0, weights / distances)
        ctx.save_for_backward(differences, slopes, vector_of)
        ctx.num_sets = len(targets)
        torch.mul(weights, distances, out=terms)
        return (weights @ distances).to(values.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        differences, slopes, vector_of = ctx.saved_tensors
        gradient = differences * (slopes * upstream).to(differences.dtype)[vector_of]
        return gradient.view(ctx.num_sets, -1).sum(0), *(None,) * 6


def _layout(moments: Moments) -> list[list[int]]:
    return [[len(vector) for vector in layer] for layer in moments]


def layer_weights(num_layers: int, device: torch.device | str = "cpu") -> Tensor:
    """Weights of the layers' distances as published: 10 for the first, 1 for the others, float32 [L]."""
    weights = torch.ones(num_layers, device=device)
    weights[:1] = 10
    return weights
