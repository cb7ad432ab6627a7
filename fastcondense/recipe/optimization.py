"""The settings by which any network is trained, teacher or student."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from .bounds import Count, CountOrZero, Decay, NonNegativeFloat, PositiveFloat
from .shared import Precision
from .unread import ReadIf

Optimizer = Literal["adamw", "adam", "sgd", "muon"]


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How a network is trained."""

    epochs: Count = 300
    """Passes over the images."""
    batch_size: Count = 128
    """Images a step, of all workers together."""
    optimizer: Optimizer = "adamw"
    """sgd is with momentum. muon: torch.optim.Muon for weights between layers, convolutions' as matrices, at AdamW's
    scale, and adamw for the first layer, the last one, biases and norms."""
    lr: PositiveFloat = 1e-3
    """Learning rate at its highest."""
    weight_decay: NonNegativeFloat = 0.01
    """Applied to parameters of more than one dimension that are named weights, unless decay_all: not to biases, norms,
    position embeddings, class tokens, bias tables or layer scales."""
    decay_all: bool = False
    """Whether every parameter decays."""
    momentum: Annotated[Decay, ReadIf("optimizer", ("sgd", "muon"))] = 0.9
    """SGD's and Muon's; 0.95 is usual for Muon."""
    schedule: Literal["cosine", "linear", "constant", "cosine_drop", "multistep"] = "cosine"
    """cosine: (1 + cos(pi e / (stretch E))) / 2 for epoch e of E after the warm-up; linear: 1 - e / (stretch E);
    cosine_drop: cosine up to 5 E / 6, then its value there times 1 - e / E (EDC's equation 33); multistep: gamma to the
    number of milestones that have passed."""
    schedule_stretch: Annotated[PositiveFloat, ReadIf("schedule", ("cosine", "linear", "cosine_drop"))] = 1.0
    """zeta; 2 is the smoothed schedule of RDED and EDC, which ends at half the learning rate."""
    milestones: Annotated[tuple[float, ...], ReadIf("schedule", ("multistep",))] = ()
    """Shares of all epochs after which a multistep schedule multiplies the learning rate by gamma."""
    gamma: Annotated[PositiveFloat, ReadIf("schedule", ("multistep",))] = 0.1
    """Factor of the learning rate at each of the milestones."""
    warmup_epochs: CountOrZero = 0
    """Linear from a hundredth of the learning rate."""
    ema: Decay = 0.0
    """Decay a step of the exponential moving average of the weights that is evaluated; 0 evaluates the weights."""
    accumulate: Count = 1
    """Parts that a batch is split into for the network's forward: BatchNorm sees a part, the optimiser the batch."""
    evaluate_every: CountOrZero = 0
    """Epochs between evaluations; 0: ten, or as many as show as many views as images are scored. The last is always
    evaluated."""
    precision: Precision = "auto"
    """Arithmetic of the network; bf16 is autocast, with float32 weights; auto as in recover."""

    def evaluation_interval(self, num_views: int, num_scored: int) -> int:
        """Epochs of num_views views from one evaluation, of num_scored images, to the next."""
        return self.evaluate_every or max(10, math.ceil(num_scored / max(1, num_views)))

    @property
    def part_size(self) -> int:
        """Images of a part of a whole batch."""
        return -(-self.batch_size // self.accumulate)

    @property
    def hard_epochs(self) -> range:
        """The epochs whose labels are the classes where those of others are soft."""
        return range(0)
