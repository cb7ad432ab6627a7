"""What goes on beside a job: the last one's shard is written, and the next one's initial images are made."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch

Key = TypeVar("Key")
Value = TypeVar("Value")


class Writer:
    """Runs one call at a time in a thread. An error in it is raised by whichever method is called next.

    At the end of a `with` block everything is finished, unless the block has failed: then it is left as it is.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "writer")
        self.pending: Future[None] | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if kind is None:
            self.settle()
        self.thread.shutdown()

    def __call__(self, write: Callable[[], None]) -> None:
        """Begins to write, once the call before has ended."""
        self.settle()
        self.pending = self.thread.submit(contextvars.copy_context().run, write)

    def settle(self) -> None:
        """Waits for the end of the last call."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()


class Ahead(Generic[Key, Value]):
    """A function of one argument, whose next value can be made in a thread meanwhile.

    Several of them may share a `thread` of one worker: then never do two run at once.
    """

    def __init__(self, function: Callable[[Key], Value], thread: ThreadPoolExecutor):
        self.function, self.thread = function, thread
        self.prepared: tuple[Key, Future[Value]] | None = None

    def prepare(self, key: Key) -> None:
        """Begins to make the value of `key`."""
        self.prepared = key, self._begun(key)

    def __call__(self, key: Key) -> Value:
        """The prepared value if it is that of `key`, which is then forgotten; else it is made now, in the thread."""
        prepared, self.prepared = self.prepared, None
        if prepared is not None and prepared[0] == key:
            return prepared[1].result()
        return self._begun(key).result()

    def _begun(self, key: Key) -> Future[Value]:
        """In the thread is allowed what is allowed here."""
        return self.thread.submit(contextvars.copy_context().run, self.function, key)


def beside(device: torch.device, *functions: Callable[[Key], Value] | None) -> list[Any]:
    """The functions as `Ahead` in one thread, on a GPU; a CPU has nothing to gain, and they stay what they are."""
    if device.type != "cuda":
        return list(functions)
    thread = ThreadPoolExecutor(1, "ahead")
    return [function and Ahead(function, thread) for function in functions]


def prepare(key: Key, *functions: Callable[[Key], Any] | None) -> None:
    """Begins to make the values of those functions that can be asked ahead."""
    for function in functions:
        if isinstance(function, Ahead):
            function.prepare(key)
