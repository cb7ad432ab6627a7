"""One update of a network by a batch: as it comes, on one rank or several, or as a CUDA graph on static buffers."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data.real import split_batches
from ..recipe.settings import Optimization
from ..workers.distributed import all_sum, average_buffers, connect, world_size
from .graph import Graphs
from .muon import AnyOptimizer
from .precision import mixed


class Batch(NamedTuple):
    """What an update needs: views [B, ...], whatever the loss needs, and the number of views on all ranks.

    wanted can be sliced as the views are, if batches are split into parts.
    """

    views: Tensor
    wanted: Any
    num_views: int


def as_it_is(pair: tuple[Tensor, Any]) -> Batch:
    """The batch of one rank, of views and what the loss needs."""
    return Batch(*pair, len(pair[0]))


class StaticItem(Protocol):
    """An item that becomes a batch without the host: its tensors can be overwritten by those of another item."""

    @property
    def shape(self) -> Hashable: ...
    @property
    def num_views(self) -> int: ...
    def clone(self) -> StaticItem: ...
    def copy_(self, other: Any) -> None: ...


class TrainStep:
    """Makes a batch from an item, and updates network, moving average and summed loss by it.

    Shared by ranks, each has its part of every batch, and parts are weighted by their views, so that gradients are
    those of whole batches.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: AnyOptimizer,
        optimization: Optimization,
        loss: Callable[[Tensor, Any], Tensor],
        make: Callable[[Any], Batch],
        is_shared: bool = False,
    ):
        self.net, self.optimizer, self.optimization, self.loss, self.make = net, optimizer, optimization, loss, make
        self.device = next(net.parameters()).device
        self.average = copy.deepcopy(net) if optimization.ema else None
        self.total, self.count = torch.zeros((), device=self.device), 0
        """Loss, summed over views, and how many there were since `take_loss`."""
        self.num_ranks = world_size() if is_shared else 1
        self.replica = None
        if self.num_ranks > 1:
            connect()
            self.replica = _replica(net, self.device)

    def __call__(self, item: Any) -> None:
        batch = self.make(item)
        self._update(batch)
        self.count += batch.num_views

    def _update(self, batch: Batch) -> None:
        """Everything but the count of views; nothing is read by the host."""
        self.optimizer.zero_grad(set_to_none=True)
        parts = list(self._parts(batch))
        for number, (views, wanted, share) in enumerate(parts, 1):
            with self._exchange(is_due=number == len(parts)):
                with mixed(self.optimization.precision, self.device):
                    logits = (self.replica or self.net)(views)
                value = share * self.loss(logits.float(), wanted)
                # gradients are averaged over the ranks, and wanted is their sum
                (value if self.num_ranks == 1 else self.num_ranks * value).backward()
            self.total += value.detach() * batch.num_views
        self.optimizer.step()
        if self.average is not None:
            _update_average(self.average, self.net, self.optimization.ema)

    def take_loss(self) -> float:
        """The mean loss of all views since the last time, those of all ranks."""
        total = all_sum(self.total) if self.num_ranks > 1 else self.total
        mean = float(total) / self.count
        self.total.zero_()
        self.count = 0
        return mean

    def agree(self) -> None:
        """Makes the ranks' networks alike: BatchNorms' running statistics are what each has seen."""
        if self.num_ranks > 1:
            for net in (self.net, self.average):
                if net is not None:
                    average_buffers(net)

    def changing(self) -> dict[Hashable, Tensor]:
        """All tensors that a step changes in place, by name."""
        found: dict[Hashable, Tensor] = {"total": self.total}
        for name, net in (("net", self.net), ("average", self.average)):
            if net is not None:
                found |= {(name, key): tensor for key, tensor in net.state_dict().items()}
        for number, state in enumerate(self.optimizer.state.values()):
            found |= {("optimizer", number, key): value for key, value in state.items() if isinstance(value, Tensor)}
        return found

    def _parts(self, batch: Batch) -> Iterator[tuple[Tensor, Any, float]]:
        """The parts that the network sees one by one: views, what the loss needs, share of the whole batch's views.

        A part is 1 / accumulate of a whole batch; of a smaller batch, the last part is smaller (one image joins the
        part before). The losses are means, so that their sum by the shares is the batch's.
        """
        views, wanted, num_views = batch
        if self.optimization.accumulate == 1:
            yield views, wanted, len(views) / num_views
            return
        for positions in split_batches(np.arange(len(views)), self.optimization.part_size):
            rows = slice(int(positions[0]), int(positions[-1]) + 1)
            yield views[rows], wanted[rows], len(positions) / num_views

    def _exchange(self, is_due: bool) -> contextlib.AbstractContextManager[object]:
        """A context in which ranks exchange gradients in a backward only if that is due."""
        return contextlib.nullcontext() if self.replica is None or is_due else self.replica.no_sync()


class CapturedStep(TrainStep):
    """A TrainStep on static buffers, which items are copied into: on a GPU one CUDA graph for each shape of a batch.

    Items are StaticItems, and the optimizer can be captured. The step is the same on other devices, without a graph.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.graphs = Graphs(self.device)
        self.captured: dict[Hashable, tuple[StaticItem, Callable[[], object]]] = {}

    def __call__(self, item: StaticItem) -> None:
        if item.shape not in self.captured:
            self.captured[item.shape] = self._capture(item)
        buffers, replay = self.captured[item.shape]
        buffers.copy_(item)
        replay()
        self.count += item.num_views

    def _capture(self, item: StaticItem) -> tuple[StaticItem, Callable[[], object]]:
        buffers, kept = item.clone(), {name: tensor.clone() for name, tensor in self.changing().items()}

        def rewind() -> None:
            for name, tensor in self.changing().items():
                if name in kept:
                    tensor.copy_(kept[name])
                else:  # of an optimizer that had not made a step yet
                    tensor.zero_()

        # The warm-up must not use up random numbers: dropout's are the same after a resumption.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            return buffers, self.graphs.capture(lambda: self._update(self.make(buffers)), rewind)


def synchronised(net: nn.Module, device: torch.device, setting: str) -> nn.Module:
    """The network with BatchNorms that see the batch of all ranks; as it is on a single one.

    Raises ValueError, naming the setting that asks for it, if there are several ranks on CPUs.
    """
    if world_size() == 1:
        return net
    if device.type != "cuda":
        raise ValueError(f"{setting} needs GPUs: PyTorch's synchronised BatchNorm has no CPU version")
    return nn.SyncBatchNorm.convert_sync_batchnorm(net)


def _replica(net: nn.Module, device: torch.device) -> DistributedDataParallel:
    """The network as DDP has it, whose buffers are not exchanged: they are averaged after an epoch."""
    with warnings.catch_warnings():
        # torch 2.13 renames broadcast_buffers, and older ones do not know the new name
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            net,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


@torch.no_grad()
def _update_average(average: nn.Module, net: nn.Module, decay: float) -> None:
    """The weights' moving average; buffers are copied: BatchNorm evaluates it with the network's own statistics."""
    for mine, new in zip(average.parameters(), net.parameters(), strict=True):
        mine.lerp_(new, 1 - decay)
    for kept, buffer in zip(average.buffers(), net.buffers(), strict=True):
        kept.copy_(buffer)
