"""The processes that work on one run together: which one this is, how many there are, and what they do in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.distributed import distributed_c10d

_PATIENCE = timedelta(days=2)  # rank 0 may do something long while the others wait; the launcher ends them if it fails
_MEETING = timedelta(minutes=3)  # for all to come and connect


@dataclass(frozen=True)
class Membership:
    """Of this process in a launch. number: how often it has joined before, as the others have, and left its traces in
    the store."""

    store: distributed.Store
    rank: int
    world: int
    backend: str
    number: int


_membership: Membership | None = None


def rank() -> int:
    """Of this process, from 0."""
    return _membership.rank if _membership else 0


def world_size() -> int:
    """Number of processes."""
    return _membership.world if _membership else 1


def is_launched() -> bool:
    """Whether torchrun, or something that sets its variables, has started this process."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))


def join(device: torch.device) -> torch.device:
    """Joins the other processes that were launched; returns the device of this one: of GPUs, that of its local rank.

    They share a store from now on, and are connected with each other only by the first of the functions below that
    needs it. Raises ValueError if there are fewer GPUs than processes.
    """
    global _membership
    if device.type == "cuda":
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            raise ValueError(f"process {local} of this machine has no GPU: there are {count}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    store, place, world = next(distributed.rendezvous("env://", timeout=_MEETING))
    number = _membership.number + 1 if _membership else 0
    _membership = Membership(store, place, world, "nccl" if device.type == "cuda" else "gloo", number)
    return device


def connect() -> None:
    """Connects all processes, which have to call this, by NCCL or gloo; once."""
    if _membership is None or _membership.world == 1 or distributed.is_initialized():
        return
    distributed.init_process_group(
        _membership.backend,
        store=distributed.PrefixStore(f"group-{_membership.number}", _membership.store),
        rank=_membership.rank,
        world_size=_membership.world,
        timeout=_MEETING,
    )
    distributed_c10d._set_pg_timeout(_PATIENCE)


def meet() -> None:
    """Waits until all have come here."""
    if world_size() > 1:
        connect()
        distributed.barrier()


def leave() -> None:
    """Takes leave of the others, who may have ended."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def first_alone() -> Iterator[None]:
    """Rank 0 does the block alone, then the others do: what it has made, they find."""
    if rank():
        meet()
    yield
    if not rank():
        meet()


def once(function: Callable[[], object]) -> None:
    """Rank 0 calls it, the others wait: what it has made is there afterwards."""
    with first_alone():
        if rank() == 0:
            function()


def all_sum(values: Tensor) -> Tensor:
    """The values, added up over all ranks, in place."""
    if world_size() > 1:
        connect()
        distributed.all_reduce(values)
    return values


@torch.no_grad()
def average_buffers(net: nn.Module) -> None:
    """Gives a network the mean of all ranks' floating-point buffers (BatchNorms' statistics), and rank 0's others."""
    connect()
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.copy_(all_sum(buffer / world_size()))
        elif world_size() > 1:
            distributed.broadcast(buffer, 0)
