"""Matching of a batch's moments with their targets: weighted, un-squared norms (SRe2L, spec 1.2; EDC, spec 1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .moments import Moments


class Matching:
    """sum_k a_k sum_l w_l sum_v ||s_lv - s*_klv||_2 over target sets k, layers l and their vectors v: a scalar.

    target_sets: (a_k, what the moments should be), all of the same shapes. layer_weights: [layers]. With ema > 0, the
    value that is compared is the running mean e <- ema e + (1 - ema) s over the calls, and its gradient that of s alone
    (straight through); e starts at the first s, or at zero as in the published EDC. At distance 0 the gradient is 0,
    as that of torch.norm.
    """

    def __init__(
        self,
        target_sets: Sequence[tuple[float, Moments]],
        layer_weights: Tensor,
        ema: float = 0.0,
        ema_start: Literal["first", "zero"] = "first",
    ):
        layout = [[len(vector) for vector in layer] for layer in target_sets[0][1]]
        device = layer_weights.device
        self.targets = torch.stack([torch.cat([v for layer in moments for v in layer]) for _, moments in target_sets])
        lengths = torch.tensor([length for layer in layout for length in layer], device=device)
        per_vector = layer_weights.repeat_interleave(torch.tensor([len(layer) for layer in layout], device=device))
        set_weights = torch.tensor([weight for weight, _ in target_sets], device=device)
        self.lengths = lengths.repeat(len(target_sets))  # [K V], as the next two
        self.weights = (set_weights[:, None] * per_vector).flatten()
        self.vector_of = torch.repeat_interleave(self.lengths)  # [K S]: the vector that each number belongs to
        self.ema, self.ema_start = ema, ema_start
        self.average = torch.zeros_like(self.targets[0])
        self.decay = torch.zeros((), device=device)
        self.reset()

    def reset(self) -> None:
        """Forgets the running mean, in place."""
        self.average.zero_()
        self.decay.fill_(self.ema if self.ema_start == "zero" else 0.0)

    def __call__(self, moments: Moments) -> Tensor:
        values = torch.cat([vector for layer in moments for vector in layer])
        if self.ema:
            with torch.no_grad():
                self.average.lerp_(values, 1 - self.decay)
                self.decay.fill_(self.ema)
            values = self.average + (values - values.detach())
        return _WeightedNorms.apply(values, self.targets, self.lengths, self.weights, self.vector_of)


class _WeightedNorms(torch.autograd.Function):
    """sum_i weights_i ||(values - targets)_i||_2 over the segments i of the flattened [K, S] differences."""

    @staticmethod
    def forward(ctx, values, targets, lengths, weights, vector_of):
        differences = (values - targets).flatten()
        norms = torch.segment_reduce(differences.square(), "sum", lengths=lengths, unsafe=True).sqrt_()
        slopes = torch.where(norms == 0, 0, weights / norms)
        ctx.save_for_backward(differences, slopes, vector_of)
        ctx.num_sets = len(targets)
        return (weights * norms).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        differences, slopes, vector_of = ctx.saved_tensors
        gradient = differences * (slopes * upstream)[vector_of]
        return gradient.view(ctx.num_sets, -1).sum(0), None, None, None, None


def layer_weights(num_layers: int, first: float, device: torch.device | str = "cpu") -> Tensor:
    """Weights of the layers' distances: `first` for the first, 1 for the others, float32 [L]."""
    weights = torch.ones(num_layers, device=device)
    weights[:1] = first
    return weights
