"""Matching of batch moments with their targets: the distances r_l of SRe2L (spec section 1.2, steps e and f)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Moments = Sequence[tuple[Tensor, Tensor]]  # (mean [C], biased variance [C]) of every layer's input


@dataclass(frozen=True)
class Targets:
    """What the moments should be: all layers' channels in a row, float32 [sum C]; channels a layer, int64 [L]."""

    mean: Tensor
    var: Tensor
    lengths: Tensor

    @staticmethod
    def of(layers: Moments) -> Targets:
        """From one (mean, var) a layer."""
        means, variances = zip(*layers, strict=True)
        lengths = torch.tensor([len(mean) for mean in means], device=means[0].device)
        return Targets(torch.cat(means), torch.cat(variances), lengths)


def layer_distances(moments: Moments, targets: Targets) -> Tensor:
    """r_l = ||var_l - target_var_l||_2 + ||mean_l - target_mean_l||_2 for every layer: [L], un-squared norms.

    At distance 0 the gradient is 0, as that of torch.norm.
    """
    means, variances = zip(*moments, strict=True)
    squares = torch.stack(((torch.cat(means) - targets.mean) ** 2, (torch.cat(variances) - targets.var) ** 2), dim=1)
    sums = torch.segment_reduce(squares, "sum", lengths=targets.lengths, axis=0, unsafe=True)
    is_zero = sums == 0
    return torch.where(is_zero, 0, torch.where(is_zero, 1, sums).sqrt()).sum(1)


def layer_weights(num_layers: int, first: float, device: torch.device | str = "cpu") -> Tensor:
    """Weights of the layers' distances: `first` for the first, 1 for the others, float32 [L]."""
    weights = torch.ones(num_layers, device=device)
    weights[:1] = first
    return weights
