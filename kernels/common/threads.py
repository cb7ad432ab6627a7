"""How the numba kernels run on the CPU: over torch's memory, on as many threads as torch uses.

Sums are split into chunks by the tensor's shape alone and added up in index order, so the thread count moves no bit.
numba shares torch's OpenMP pool, so the two do not wait for each other's spinning threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba.core import event
from torch import Tensor

_config: Any = numba.config  # its settings are not declared
_config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]

Function = Callable[..., Any]

_SOURCES = sorted(Path(__file__).parents[1].rglob("*.py"))
_STAMP = [(path.stat().st_mtime_ns, path.stat().st_size) for path in _SOURCES]


def _compiled(**options: Any) -> Callable[[Function], Function]:
    """numba.njit with machine code kept on disk, where there is a folder that can be written for it.

    No fast math: every operation is rounded, and every sum taken, as it is written, or the bits would hang on what the
    compiler saw at once, which differs between code that was compiled here and code that was loaded.
    """

    def compile_(function: Function) -> Function:
        settings: dict[str, Any] = {"nogil": True} | options
        try:
            compiled: Any = numba.njit(cache=True, **settings)(function)
        except RuntimeError:  # no such folder
            return numba.njit(**settings)(function)
        # What is kept is good for these files alone: numba looks at the function's own, not at those of what it calls.
        compiled._cache._cache_file._source_stamp = _STAMP
        return compiled

    return compile_


# A kernel compiles fast if little more than its prange stands in it: what that calls is a `part`, which numba compiles
# without its passes for parallel code, once for all places that call it, and without entries for Python or C.
kernel = _compiled(parallel=True)
inline = _compiled(inline="always")
part = _compiled(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


class _OnStart(event.Listener):
    def __init__(self, function: Callable[[], None]):
        self.functions = [function]

    def on_start(self, _: event.Event) -> None:
        """Calls the function, once."""
        if self.functions:
            self.functions.pop()()

    def on_end(self, _: event.Event) -> None:
        pass


@contextlib.contextmanager
def before_compiling(tell: Callable[[], None]) -> Iterator[None]:
    """Calls `tell` once, before the first loop that is compiled in the block; loops that are loaded take no time."""
    with event.install_listener("numba:compile", _OnStart(tell)):
        yield


NUM_CHUNKS = 64


Elements = np.ndarray[tuple[int], np.dtype[Any]]

ELEMENTS: dict[torch.dtype, Elements] = {
    torch.float32: np.empty(0, np.float32),
    torch.bfloat16: np.empty(0, np.uint16),
    torch.uint8: np.empty(0, np.uint8),
}
"""What tells a kernel the type of a tensor's elements: an array that is empty; bfloat16 as uint16."""


def launch(function: Function, *arguments: Tensor | int | float | bool) -> None:
    """Calls a `kernel`: tensors are passed as numpy views of their memory, everything else as it is."""
    _call(function, [array(value) if isinstance(value, Tensor) else value for value in arguments])


def launch_at(function: Function, dtype: torch.dtype, *arguments: Tensor | Elements | int | None) -> None:
    """Calls a `kernel` with ELEMENTS of the dtype, then the address of each tensor, 0 for None, all else as it is.

    The kernel makes its arrays by `memory`, for nothing, where a numpy view of a tensor takes 3 us: most of the fixed
    cost of an operator with twenty of them. The caller answers for types, shapes and layouts. Raises ValueError for a
    tensor that has no memory on the CPU: of another device, fake or empty.
    """
    given: list[Any] = [ELEMENTS[dtype]]
    for value in arguments:
        if isinstance(value, Tensor):
            address = value.data_ptr()
            if not address or not value.is_cpu:
                raise ValueError(f"a loop needs tensors in the CPU's memory, got {type(value)} on {value.device}")
            given.append(address)
        else:
            given.append(0 if value is None else value)
    _call(function, given)


def _call(function: Function, arguments: list[Any]) -> None:
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, _config.NUMBA_NUM_THREADS))
    function(*arguments)
    if torch.get_num_threads() != threads:  # numba's first launch sets the shared pool to all cores
        torch.set_num_threads(threads)


def array(x: Tensor) -> np.ndarray:
    """The memory of x as a numpy array, also of a tensor that requires gradients; bfloat16 as uint16."""
    x = x.detach() if x.requires_grad else x
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def chunk_length(length: int) -> int:
    """Rows a chunk, so that NUM_CHUNKS chunks or fewer cover `length` rows."""
    return max(1, -(-length // NUM_CHUNKS))


def planes(x: Tensor) -> tuple[Tensor, int]:
    """Rows as they lie in memory, and the distance between neighbouring pixels in a row.

    x: [N, C, H, W]; [N * C, H, W] and 1 if it is contiguous, [N, H, W * C] and C if it is channels_last.
    """
    num_images, channels, height, width = x.shape
    if x.is_contiguous():
        return x.view(num_images * channels, height, width), 1
    return x.permute(0, 2, 3, 1).view(num_images, height, width * channels), channels
