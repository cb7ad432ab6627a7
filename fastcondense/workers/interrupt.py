"""SIGTERM (preemption) and SIGINT (Ctrl-C): a process ends within ten seconds, and loses nothing that it could save."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from .launched import whole_number

PARENT = "FASTCONDENSE_PARENT"
"""The variable in which a launcher leaves its process number to its workers."""
NOTICE = "fastcondense: interrupted; the same command goes on from here\n"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_GRACE = 6.0
"""Seconds from the first signal to the end, whatever is being computed."""
_AGAIN = 0.02  # seconds until a signal comes again that was raised where nothing can be raised
_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)


class Interrupted(KeyboardInterrupt):
    """A signal came."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def status_of(error: BaseException) -> int:
    """The exit status that shells expect of a process that a signal has ended; `error` is what came of it."""
    return 128 + (error.number if isinstance(error, Interrupted) else _requested or signal.SIGINT)


_requested: int | None = None
_held = 0


@contextlib.contextmanager
def listening(*, with_parent: bool = False, grace: float = _GRACE) -> Iterator[None]:
    """Takes signals in the block, in the main thread; `with_parent`: the end of the process that has started this one
    counts as SIGTERM.

    Raises Interrupted in the block. Whatever the main thread is doing then, the process ends after `grace` seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers, ignore = {number: signal.getsignal(number) for number in _SIGNALS}, sys.unraisablehook
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_end_in_time, args=(reading, grace), daemon=True).start()
    sys.unraisablehook = functools.partial(_raise_again, ignore)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in _SIGNALS:
        signal.signal(number, _arrive)
    try:
        if with_parent and sys.platform == "linux":
            parent = whole_number(PARENT, os.getppid())  # it may have ended before this process came here
            ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
            if os.getppid() != parent:
                raise Interrupted(signal.SIGTERM)
        yield
    finally:
        sys.unraisablehook = ignore
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(writing)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A block that looks at `check` often and saves what it has first; elsewhere a signal is raised at once."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    check()


def is_requested() -> bool:
    """Whether a signal has come."""
    return _requested is not None


def check() -> None:
    """Raises Interrupted if a signal has come."""
    if _requested is not None:
        raise Interrupted(_requested)


def _arrive(number: int, _frame: FrameType | None) -> None:
    global _requested
    if _requested is not None:
        return
    _requested = number
    if not _held:
        raise Interrupted(number)


def _raise_again(ignore: Callable[[Any], object], unraisable: Any) -> None:
    """Python can only print what is raised in a destructor or a callback of C, such as those of numba's compiler: a
    signal that came there comes once more."""
    global _requested
    if not isinstance(unraisable.exc_value, Interrupted):
        ignore(unraisable)
    elif _requested is not None:
        number, _requested = _requested, None
        threading.Timer(_AGAIN, os.kill, (os.getpid(), number)).start()


def _end_in_time(reading: int, grace: float) -> None:
    """Reads the numbers of signals, which Python writes at once, also while the main thread waits in a library."""
    while (number := os.read(reading, 1)) and number[0] not in _SIGNALS:
        pass
    if number:
        time.sleep(grace)
        if PARENT not in os.environ:
            os.write(2, NOTICE.encode())
        os._exit(128 + number[0])
    os.close(reading)
