"""One training loop for teachers and students, resumable after every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..loaders.reading import naming
from ..recipe.settings import Optimization
from ..records import Duration, checked
from ..rng import Stream
from ..tensor_files import read_checkpoint, write_checkpoint
from ..workers.distributed import rank
from .muon import AnyOptimizer, MuonAndAdamW
from .precision import arithmetic
from .train_step import Batch, CapturedStep, TrainStep, as_it_is

# epoch -> what batches are made from: views and whatever the loss needs, or what `make` takes
Batches = Callable[[int], Iterable[Any]]
_SECONDS_BETWEEN_CHECKPOINTS = 20.0


class Divergence(ValueError):
    """The loss is not finite."""


def learning_rate_factor(optimization: Optimization, epoch: int) -> float:
    """Factor of the learning rate in an epoch: linear warm-up from 0.01, then the schedule over the other epochs.

    Milestones are shares of all epochs, the warm-up included. Schedules: equation 33 of EDC.
    """
    warmup = optimization.warmup_epochs
    if epoch < warmup:
        return 0.01 + 0.99 * epoch / warmup
    done, rest = epoch - warmup, max(1, optimization.epochs - warmup)
    progress, stretch = done / rest, optimization.schedule_stretch

    def cosine(progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress / stretch))

    match optimization.schedule:
        case "cosine":
            return cosine(progress)
        case "linear":
            return 1 - progress / stretch
        case "cosine_drop":  # not continuous: at 5 E / 6 it falls to a sixth
            return cosine(progress) if 6 * done <= 5 * rest else cosine(5 / 6) * (1 - progress)
        case "multistep":
            # a share's rounding error must not move its epoch: 0.29 of 100 epochs are 29
            passed = (epoch >= math.floor(share * optimization.epochs + 1e-6) for share in optimization.milestones)
            return optimization.gamma ** sum(passed)
        case "constant":
            return 1.0


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a weight of more than one dimension, by its name in the network.

    Biases, norms, position embeddings, class tokens, bias tables and layer scales are none.
    """
    return "weight" in name and parameter.dim() > 1


def hidden_weights(named: Sequence[tuple[str, Tensor]]) -> list[str]:
    """Names of the matrices, and of the filters that are taken as such, which Muon trains; `named` is in forward order.

    They are the weights but for the first one, which sees pixels, and the last one, the classifier: these are for
    another optimiser (Jordan's note). So are filters of one input channel, whose rows are filters by themselves.
    """
    weights = [(name, p) for name, p in named if is_decayed(name, p)]
    return [name for name, p in weights[1:-1] if p.shape[1] > 1]


def make_optimizer(net: nn.Module, optimization: Optimization, is_captured: bool = False) -> AnyOptimizer:
    """AdamW, Adam, SGD, or Muon; weight decay on what the published codes decay (`is_decayed`), on all if decay_all.

    is_captured: on a GPU its steps can be captured, with a learning rate that is on the device; not Muon's. Raises
    ValueError for Muon and a network without hidden weights.
    """
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]

    def groups(chosen: Sequence[tuple[str, Tensor]]) -> list[dict[str, Any]]:
        decayed = [p for name, p in chosen if optimization.decay_all or is_decayed(name, p)]
        kept = [p for name, p in chosen if not (optimization.decay_all or is_decayed(name, p))]
        return [{"params": decayed, "weight_decay": optimization.weight_decay}, {"params": kept, "weight_decay": 0.0}]

    if optimization.optimizer == "muon":
        hidden = hidden_weights(named)
        if not hidden:
            raise ValueError("optimizer muon is for weights between the first layer and the last, and there are none")
        mine = groups([(name, p) for name, p in named if name in hidden])
        others = groups([(name, p) for name, p in named if name not in hidden])
        return MuonAndAdamW(mine, others, optimization.lr, optimization.momentum)
    options: dict[str, Any] = {"lr": optimization.lr, "fused": True}
    if is_captured and named[0][1].is_cuda:
        options["lr"] = torch.tensor(optimization.lr, device=named[0][1].device)
        options |= {} if optimization.optimizer == "sgd" else {"capturable": True}
    if optimization.optimizer == "sgd":
        return torch.optim.SGD(groups(named), momentum=optimization.momentum, **options)
    kind = torch.optim.AdamW if optimization.optimizer == "adamw" else torch.optim.Adam
    return kind(groups(named), **options)


def set_learning_rate(optimizer: AnyOptimizer, rate: float) -> None:
    """Sets the learning rate of all parameters, in place where it is on the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def fit(
    net: nn.Module,
    optimization: Optimization,
    batches: Batches,
    loss: Callable[[Tensor, Any], Tensor],
    evaluate: Callable[[nn.Module], dict[str, float]],
    stream: Stream,
    checkpoint: Path,
    report: Callable[[dict[str, float]], None],
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
    *,
    num_scored: int = 0,
    make: Callable[[Any], Batch] = as_it_is,
    is_captured: bool = False,
    is_shared: bool = False,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Trains `net` in place; returns what is evaluated (its moving average, if the recipe has one) and the history.

    Each history entry has epoch, loss, lr, seconds (of training, so far) and what `evaluate` gives, of num_scored
    images; there is one every `Optimization.evaluation_interval` epochs and for the last.
    The state is written to `checkpoint` every few seconds, at an epoch's end; if the file exists, training goes on from
    there, to the same bits. `stream` seeds dropout; `track` may show progress over the epochs. Raises Divergence if
    the loss is not finite.

    `make` makes a batch from what `batches` gives, as a part of the step: with is_captured, of a CUDA graph on a GPU.
    is_shared: all ranks call this, each with its part of every batch; `evaluate` gives all of them the same.
    """
    optimizer = make_optimizer(net, optimization, is_captured)
    kind = CapturedStep if is_captured else TrainStep
    step = kind(net, optimizer, optimization, loss, make, is_shared)
    average, number = step.average, rank() if is_shared else 0
    history: list[dict[str, float]] = []
    first, seconds = 0, 0.0
    if checkpoint.exists():
        with naming(checkpoint, "{path} is not the state of this training; remove it: {error}"):
            first, history, seconds = _restore(read_checkpoint(checkpoint), net, average, optimizer)
            if not 0 < first <= optimization.epochs or (first == optimization.epochs and not history):
                raise ValueError(f"it is after epoch {first} of {optimization.epochs}")
    saved_at = time.monotonic()
    for epoch in track(range(first, optimization.epochs)):
        started_at = time.monotonic()
        rate = optimization.lr * learning_rate_factor(optimization, epoch)
        set_learning_rate(optimizer, rate)
        net.train()
        with stream.torch_generator(epoch, number), arithmetic(optimization.precision):
            for item in batches(epoch):
                step(item)
        step.agree()
        num_views = step.count
        mean_loss = step.take_loss()
        is_last = epoch + 1 == optimization.epochs
        is_evaluated = is_last or (epoch + 1) % optimization.evaluation_interval(num_views, num_scored) == 0
        trained_for = time.monotonic() - started_at
        seconds += trained_for
        if not math.isfinite(mean_loss):
            raise Divergence(f"training diverged in epoch {epoch}: loss {mean_loss}; try a smaller learning rate")
        if is_evaluated:
            entry = {"epoch": epoch + 1, "loss": mean_loss, "lr": rate, "seconds": seconds}
            entry |= evaluate(average if average is not None else net)
            history.append(entry)
            report(entry | {"images_per_second": num_views / max(1e-9, trained_for)})
        if number == 0 and (is_last or time.monotonic() - saved_at > _SECONDS_BETWEEN_CHECKPOINTS):
            state = {"epoch": epoch + 1, "history": history, "seconds": seconds}
            _save(checkpoint, net, average, optimizer, state)
            saved_at = time.monotonic()
    return (average if average is not None else net), history


def _restore(
    state: Any, net: nn.Module, average: nn.Module | None, optimizer: AnyOptimizer
) -> tuple[int, list[dict[str, float]], float]:
    """Takes back what `_save` has written; returns the epochs that are done, their history, and their seconds."""
    net.load_state_dict(state["net"])
    # how the optimizer computes is this device's affair
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state["optimizer"]["state"]})
    for weight, values in optimizer.state.items():
        for value in values.values():
            if isinstance(value, Tensor) and value.dim() and value.shape != weight.shape:
                raise ValueError(f"the optimizer has {tuple(value.shape)} for a weight {tuple(weight.shape)}")
    if average is not None:
        average.load_state_dict(state["average"])
    return (
        checked(state["epoch"], int, "epoch"),
        checked(state["history"], list[dict[str, float]], "history"),
        checked(state["seconds"], Duration, "seconds"),
    )


def _save(
    path: Path, net: nn.Module, average: nn.Module | None, optimizer: AnyOptimizer, progress: dict[str, Any]
) -> None:
    state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), **progress}
    write_checkpoint(path, state | ({} if average is None else {"average": average.state_dict()}))
