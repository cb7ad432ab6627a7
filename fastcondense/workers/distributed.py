"""The processes that train on one run together: which one this is, how many there are, and what they do in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from .launched import LAUNCHER, attempt, whole_number

_PATIENCE = timedelta(days=2)  # rank 0 may do something long while the others wait; the launcher ends them if it fails
_MEETING = timedelta(minutes=3)  # for all to come and connect


class Membership(NamedTuple):
    """This process among those of a launch."""

    rank: int
    world: int
    backend: str


_membership: Membership | None = None


def rank() -> int:
    """The rank of this process, from 0."""
    return _membership.rank if _membership else 0


def world_size() -> int:
    """Number of processes."""
    return _membership.world if _membership else 1


def join(device: torch.device) -> torch.device:
    """Takes this process' place among those that were launched; returns its device: of GPUs, that of its local rank.

    They are connected with each other only by the first of the functions below that needs it. Raises ValueError if
    there are fewer GPUs than processes.
    """
    global _membership
    if device.type == "cuda":
        local, count = whole_number("LOCAL_RANK"), torch.cuda.device_count()
        if local >= count:
            raise ValueError(f"process {local} of this machine has no GPU: there are {count}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if _membership is None:
        _membership = Membership(whole_number("RANK"), whole_number("WORLD_SIZE", lowest=1), backend)
    return device


def connect() -> None:
    """Connects all processes, which have to call this, by NCCL or gloo; once.

    Those of one machine find each other by a file; those of torchrun by its store.
    """
    member = _membership
    if member is None or member.world == 1 or distributed.is_initialized():
        return
    if LAUNCHER in os.environ:
        path = Path(os.environ[LAUNCHER]) / f"group-{attempt()}"
        store: distributed.Store = distributed.FileStore(str(path), member.world)
    else:
        store = next(distributed.rendezvous("env://", timeout=_MEETING))[0]
    distributed.init_process_group(
        member.backend, store=store, rank=member.rank, world_size=member.world, timeout=_PATIENCE
    )


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
