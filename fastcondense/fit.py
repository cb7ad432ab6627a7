"""One training loop for teachers and students, resumable after every epoch."""

from __future__ import annotations

import copy
import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .files import read_checkpoint, write_atomic
from .precision import arithmetic, mixed
from .real import split_batches
from .rng import Stream
from .settings import Optimization

# epoch -> (views, whatever the loss needs); the latter can be sliced as the views are, if batches are split
Batches = Callable[[int], Iterable[tuple[Tensor, Any]]]
_SECONDS_BETWEEN_CHECKPOINTS = 20.0


class Divergence(ValueError):
    """The loss is not finite."""


def learning_rate_factor(optimization: Optimization, epoch: int) -> float:
    """Factor of the learning rate in an epoch: linear warm-up from 0.01, then the schedule over the other epochs.

    Milestones are shares of all epochs, the warm-up included. Schedules: spec gvbsm_edc 3, equation 33 of EDC.
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


def make_optimizer(net: nn.Module, optimization: Optimization) -> torch.optim.Optimizer:
    """AdamW, Adam or SGD; weight decay on tensors of more than one dimension only, unless decay_all."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.dim() > 1 or optimization.decay_all]
    kept = [p for p in parameters if p.dim() <= 1 and not optimization.decay_all]
    groups = [{"params": decayed, "weight_decay": optimization.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    if optimization.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=optimization.lr, momentum=optimization.momentum)
    kind = torch.optim.AdamW if optimization.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=optimization.lr, betas=optimization.betas)


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
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Trains `net` in place; returns what is evaluated (its moving average, if the recipe has one) and the history.

    Each history entry has epoch, loss, lr, seconds (of training, so far) and what `evaluate` gives; there is one every
    `evaluate_every` epochs and for the last.
    The state is written to `checkpoint` every few seconds, at an epoch's end; if the file exists, training goes on from
    there, to the same bits. `stream` seeds dropout; `track` may show progress over the epochs. Raises Divergence if
    the loss is not finite.
    """
    optimizer = make_optimizer(net, optimization)
    average = copy.deepcopy(net) if optimization.ema else None
    history: list[dict[str, float]] = []
    first, seconds = 0, 0.0
    if checkpoint.exists():
        state = read_checkpoint(checkpoint)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
        first, history, seconds = state["epoch"], state["history"], state["seconds"]
    saved_at = time.monotonic()
    for epoch in track(range(first, optimization.epochs)):
        started_at = time.monotonic()
        factor = learning_rate_factor(optimization, epoch)
        for group in optimizer.param_groups:
            group["lr"] = optimization.lr * factor
        net.train()
        total, count = torch.zeros((), device=next(net.parameters()).device), 0
        with stream.torch_generator(epoch), arithmetic(optimization.precision):
            for views, wanted in batches(epoch):
                optimizer.zero_grad(set_to_none=True)
                for part, wanted_of_part, share in _parts(views, wanted, optimization):
                    with mixed(optimization.precision, views.device):
                        logits = net(part)
                    value = share * loss(logits.float(), wanted_of_part)
                    value.backward()
                    total += value.detach() * len(views)
                optimizer.step()
                if average is not None:
                    _update_average(average, net, optimization.ema)
                count += len(views)
        is_last = epoch + 1 == optimization.epochs
        is_evaluated = is_last or (epoch + 1) % optimization.evaluate_every == 0
        mean_loss = float(total) / count
        seconds += time.monotonic() - started_at
        if not math.isfinite(mean_loss):
            raise Divergence(f"training diverged in epoch {epoch}: loss {mean_loss}; try a smaller learning rate")
        if is_evaluated:
            entry = {"epoch": epoch + 1, "loss": mean_loss, "lr": optimization.lr * factor, "seconds": seconds}
            entry |= evaluate(average if average is not None else net)
            history.append(entry)
            report(entry)
        if is_last or time.monotonic() - saved_at > _SECONDS_BETWEEN_CHECKPOINTS:
            state = {"epoch": epoch + 1, "history": history, "seconds": seconds}
            _save(checkpoint, net, average, optimizer, state)
            saved_at = time.monotonic()
    return (average if average is not None else net), history


def _parts(views: Tensor, wanted: Any, optimization: Optimization) -> Iterator[tuple[Tensor, Any, float]]:
    """The parts of a batch that the network sees one by one: views, what the loss needs, share of the batch's images.

    A part is 1 / accumulate of a whole batch; of a smaller batch, the last part is smaller (one image joins the part
    before). The losses are means, so that their sum by the shares is the batch's.
    """
    if optimization.accumulate == 1:
        yield views, wanted, 1.0
        return
    size = -(-optimization.batch_size // optimization.accumulate)
    for positions in split_batches(np.arange(len(views)), size):
        rows = slice(int(positions[0]), int(positions[-1]) + 1)
        yield views[rows], wanted[rows], len(positions) / len(views)


@torch.no_grad()
def _update_average(average: nn.Module, net: nn.Module, decay: float) -> None:
    """The weights' moving average; buffers are copied: BatchNorm evaluates it with the network's own statistics."""
    for mine, new in zip(average.parameters(), net.parameters(), strict=True):
        mine.lerp_(new, 1 - decay)
    for kept, buffer in zip(average.buffers(), net.buffers(), strict=True):
        kept.copy_(buffer)


def _save(
    path: Path, net: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    file = io.BytesIO()
    state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), **progress}
    torch.save(state | ({} if average is None else {"average": average.state_dict()}), file)
    write_atomic(path, file.getvalue())
