"""What the kernel tests share: where kernels run, errors against float64, and allocations full of NaN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Of the Triton kernels: their interpreter cuts bfloat16 off."""
ROUNDED = TOLERANCE | {torch.bfloat16: 2**-8}
"""Of the CPU's loops, which round to the nearest."""


def relative_rms(got: Tensor, wanted: Tensor, floor: float = 0.0) -> float:
    """||got - wanted|| / ||wanted||, in float64; a root mean square of `wanted` below `floor` counts as `floor`."""
    got, wanted = got.detach().double().cpu(), wanted.detach().double().cpu()
    assert got.shape == wanted.shape
    error = (got - wanted).square().mean().sqrt()
    scale = max(wanted.square().mean().sqrt().item(), floor)
    return 0.0 if error == 0 else (error / scale).item() if scale else float("inf")


@contextmanager
def poisoned() -> Iterator[None]:
    """torch.empty and torch.empty_like return NaN (255 for bytes): what a kernel leaves unwritten shows."""

    def poison(x: Tensor) -> Tensor:
        return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)

    empty, empty_like = torch.empty, torch.empty_like
    with (
        mock.patch.object(torch, "empty", lambda *args, **kwargs: poison(empty(*args, **kwargs))),
        mock.patch.object(torch, "empty_like", lambda *args, **kwargs: poison(empty_like(*args, **kwargs))),
    ):
        yield


class NoHostReads(TorchDispatchMode):
    """Fails where the host reads a tensor's value, or a shape depends on one: a CUDA graph cannot capture either."""

    _READERS = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "repeat_interleave", "_linalg_eigh")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self._READERS, f"{name} is read by the host"
        if name == "index":
            assert all(index is None or index.dtype != torch.bool for index in args[1]), "indexed by a mask"
        return function(*args, **(kwargs or {}))
