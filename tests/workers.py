"""Processes that work on one thing together, as torchrun starts them, on the CPU."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
from torch import multiprocessing

from fastcondense.workers.distributed import join, leave

Function = Callable[..., Any]


def start(function: Function, world: int, *arguments: Any) -> None:
    """Calls function(rank, *arguments) in so many processes that have joined; raises what one of them raises."""
    multiprocessing.spawn(_work, (function, world, free_port(), arguments), nprocs=world)


def _work(rank: int, function: Function, world: int, port: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "FASTCONDENSE_PATIENCE": "1"}
    join(torch.device("cpu"))
    function(rank, *arguments)
    leave()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
