"""Number formats of the networks' arithmetic. Images, statistics, losses and optimiser states are always float32.

"auto" is settled when a run is opened (Run.open); where no run has settled it, it is float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ..recipe.shared import Precision
from .cpu_operators import CpuOperators

_NETWORK_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "auto": torch.float32}


def network_dtype(precision: Precision) -> torch.dtype:
    """Type of a frozen network's weights and feature maps."""
    return _NETWORK_DTYPES[precision]


@contextmanager
def arithmetic(precision: Precision, is_reproducible: bool = True) -> Iterator[None]:
    """Sets what a GPU's float32 products round to, and that cuDNN takes the same deterministic algorithms each time;
    without is_reproducible, those that it finds to be fastest."""
    backends: Any = torch.backends  # torch's annotations lack some of these
    matmul, conv, cudnn = backends.cuda.matmul, backends.cudnn.conv, backends.cudnn
    before = matmul.fp32_precision, conv.fp32_precision, cudnn.deterministic, cudnn.benchmark
    fp32 = "tf32" if precision == "tf32" else "ieee"
    matmul.fp32_precision, conv.fp32_precision, cudnn.deterministic, cudnn.benchmark = (
        fp32,
        fp32,
        is_reproducible,
        not is_reproducible,
    )
    try:
        yield
    finally:
        matmul.fp32_precision, conv.fp32_precision, cudnn.deterministic, cudnn.benchmark = before


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """The block has so many threads of a CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread(device: torch.device) -> AbstractContextManager[None]:
    """The block runs on one thread on a CPU: oneDNN's convolutions split sums in a way that depends on the number."""
    return on_threads(1) if device.type == "cpu" else nullcontext()


@contextmanager
def mixed(precision: Precision, device: torch.device) -> Iterator[None]:
    """Autocast for a network in training: bf16 where it is safe, float32 master weights; nothing for the others.

    On a CPU, with `CpuOperators` in it.
    """
    is_low = precision == "bf16"
    operators = CpuOperators() if is_low and device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=is_low), operators:
        yield


def cast(net: nn.Module, dtype: torch.dtype, kept: tuple[type[nn.Module], ...]) -> None:
    """Casts floating-point weights and buffers in place, except those of modules of the types `kept`."""
    for module in net.modules():
        if isinstance(module, kept):
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
