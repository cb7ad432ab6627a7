"""The processes that work on one run together: which one this is, how many there are, and what they do in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

_PATIENCE = timedelta(days=2)  # rank 0 may train teachers while the others wait; torchrun ends them if it fails


def rank() -> int:
    """Of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_launched() -> bool:
    """Whether torchrun, or something that sets its variables, has started this process."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))


def join(device: torch.device) -> torch.device:
    """Joins the other processes that were launched; returns the device of this one: of GPUs, that of its local rank.

    They talk by NCCL between GPUs and by gloo between CPUs. Raises ValueError if there are fewer GPUs than processes.
    """
    if device.type == "cuda":
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            raise ValueError(f"process {local} of this machine has no GPU: there are {count}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    return device


def meet() -> None:
    """Waits until all have come here."""
    if world_size() > 1:
        distributed.barrier()


def leave() -> None:
    """Takes leave of the others, who may have ended."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def first_alone() -> Iterator[None]:
    """Rank 0 does the block alone, then the others do: what it has made, they find."""
    if rank():
        distributed.barrier()
    yield
    if world_size() > 1 and not rank():
        distributed.barrier()


def once(function: Callable[[], object]) -> None:
    """Rank 0 calls it, the others wait: what it has made is there afterwards."""
    with first_alone():
        if rank() == 0:
            function()


def agree(value: int) -> int:
    """Rank 0's value, on all ranks."""
    if world_size() == 1:
        return value
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    shared = torch.tensor([value], dtype=torch.int64, device=device)
    distributed.broadcast(shared, 0)
    return int(shared)


def all_sum(values: Tensor) -> Tensor:
    """The values, added up over all ranks, in place."""
    if world_size() > 1:
        distributed.all_reduce(values)
    return values


@torch.no_grad()
def average_buffers(net: nn.Module) -> None:
    """Gives a network the mean of all ranks' floating-point buffers (BatchNorms' statistics), and rank 0's others."""
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.copy_(all_sum(buffer / world_size()))
        elif world_size() > 1:
            distributed.broadcast(buffer, 0)
