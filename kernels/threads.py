"""How the numba kernels run on the CPU: over torch's memory, on as many threads as torch uses.

Sums are split into chunks by the tensor's shape alone and added up in index order, so the thread count moves no bit.
numba shares torch's OpenMP pool, so the two do not wait for each other's spinning threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]

# contract: a * b + c may become one instruction, as on the GPU; sums keep the order in which they are written.
kernel: Callable[..., Any] = numba.njit(parallel=True, cache=True, nogil=True, fastmath={"contract"})
inline: Callable[..., Any] = numba.njit(cache=True, nogil=True, fastmath={"contract"}, inline="always")

NUM_CHUNKS = 64


def launch(function: Callable[..., Any], *arguments: Tensor | int | float | bool) -> None:
    """Calls a `kernel`: tensors are passed as numpy views of their memory, everything else as it is."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    function(*(array(value) if isinstance(value, Tensor) else value for value in arguments))
    if torch.get_num_threads() != threads:  # numba's first launch sets the shared pool to all cores
        torch.set_num_threads(threads)


def array(x: Tensor) -> np.ndarray:
    """The same memory as a numpy array, also of a tensor that requires gradients."""
    return x.detach().numpy()


def chunk_length(length: int) -> int:
    """Rows a chunk, so that NUM_CHUNKS chunks or fewer cover `length` rows."""
    return max(1, -(-length // NUM_CHUNKS))
