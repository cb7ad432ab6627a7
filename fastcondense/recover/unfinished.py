"""The state of a job that is not finished: written every minute and when a signal comes, read by whoever goes on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..data.jobs import Job
from ..loaders.reading import naming
from ..tensor_files import read_tensors, write_tensors
from ..workers.interrupt import check, held, is_requested

_SECONDS_BETWEEN = 60.0
_SECONDS_BETWEEN_WORDS = 10.0
_IN_FLIGHT = 16  # iterations that the host may be ahead of a GPU: enough to keep it busy, few enough to stop at once
State = dict[str, Tensor]


class Unfinished:
    """The file that keeps the state of a job until it is finished. Two workers may write it, if one was taken for lost:
    both states are of the same way.

    identity: of all that decides the images, but for the job. say: is told how far the job is whenever that is written;
    show: every ten seconds, as the iterations that are done, and all.
    """

    def __init__(
        self,
        folder: Path,
        job: Job,
        identity: str,
        say: Callable[[str], None] = lambda _text: None,
        show: Callable[[int, int], None] = lambda _done, _count: None,
    ):
        self.path = folder / f"unfinished-{job.index:05d}.safetensors"
        self.identity, self.say, self.show = identity, say, show
        self.said_at = self.shown_at = time.monotonic()

    def tell(self, done: int, count: int) -> None:
        """Shows how many iterations are done, unless that was just done."""
        if time.monotonic() - self.shown_at > _SECONDS_BETWEEN_WORDS:
            self.show(done, count)
            self.shown_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether the state should be written after this iteration."""
        return is_requested() or time.monotonic() - self.said_at > _SECONDS_BETWEEN

    def write(self, iteration: int, tensors: Mapping[str, Tensor]) -> None:
        """Saves the state before `iteration`, and says how far the job is."""
        write_tensors(self.path, tensors, {"identity": self.identity, "iteration": str(iteration)})
        self.say(f"recover: {self.path.stem} is at iteration {iteration}")
        self.said_at = time.monotonic()

    def read(self) -> tuple[int, State] | None:
        """Iteration and tensors of the state; None if there is none, or it is damaged or of another recipe:
        then the job begins anew."""
        try:
            tensors, metadata = read_tensors(self.path)
        except ValueError:
            return None
        if metadata.get("identity") != self.identity:
            return None
        return int(metadata["iteration"]), tensors

    def remove(self) -> None:
        """Removes the file, once the job's shard is written."""
        self.path.unlink(missing_ok=True)


def remaining(
    count: int,
    unfinished: Unfinished | None,
    device: torch.device,
    state: Callable[[], State],
    restore: Callable[[State], None],
) -> Iterator[int]:
    """The iterations of a job that are still to be done: from the saved state on, if there is one.

    `state` is what has to be saved between two iterations, and `restore` takes it back.
    Raises Interrupted once a signal has come and the state is saved. Without `unfinished`, nothing is saved.
    """
    if unfinished is None:
        yield from range(count)
        return
    first = 0
    with naming(unfinished.path, "{path} is not the state of its job; remove it: {error}"):
        if (saved := unfinished.read()) is not None:
            first = saved[0]
            if not 0 < first < count or int(saved[1].get("step", first)) != first:
                raise ValueError(f"it is before iteration {first} of {count}, and its counter is another")
            restore(saved[1])
            for name, tensor in state().items():  # what is copied in place may be stretched
                if (found := saved[1][name]).shape != tensor.shape or found.dtype != tensor.dtype:
                    raise ValueError(f"its {name!r} is {found.dtype} {list(found.shape)}, not {list(tensor.shape)}")
    if saved is not None:
        unfinished.say(f"recover: {unfinished.path.stem} goes on from iteration {first}")
    in_flight: deque[torch.cuda.Event] = deque()
    with held():
        for iteration in range(first, count):
            yield iteration
            if device.type == "cuda":
                in_flight.append(torch.cuda.Event())
                in_flight[-1].record()
                if len(in_flight) > _IN_FLIGHT:
                    in_flight.popleft().synchronize()
            unfinished.tell(iteration + 1, count)
            if unfinished.is_due() and iteration + 1 < count:
                unfinished.write(iteration + 1, state())
                check()
