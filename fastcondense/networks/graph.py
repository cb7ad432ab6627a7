"""A step as one CUDA graph: replayed with a single launch, without the host reading anything from the device."""

from __future__ import annotations

from collections.abc import Callable

import torch

WARM_UPS = 3


class Graphs:
    """Makes graphs that share one memory pool: they may not run at the same time, nor keep results in it."""

    def __init__(self, device: torch.device):
        self.device = device
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def capture(self, step: Callable[[], None], rewind: Callable[[], object]) -> Callable[[], None]:
        """A function that replays `step` as a CUDA graph; on other devices `step` itself.

        A step works on static buffers alone. It is run WARM_UPS times before the capture, each time after `rewind`, so
        that kernels are compiled and libraries initialised: the caller resets its buffers afterwards, in place.
        """
        if self.device.type != "cuda":
            return step
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                rewind()
                step()
            rewind()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads may allocate meanwhile: images are made and saved in the background
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            step()
        return graph.replay
