"""Signals that come at bad moments: one line, and the status that shells expect."""

import ctypes
import multiprocessing
import os
import signal
import sys
import time

import pytest

from fastcondense import cli
from fastcondense.workers import interrupt

FORK = multiprocessing.get_context("fork")


def said_by(tmp_path, work, seconds=20):
    """What the command line says, and its status, when it does `work` while it listens for signals."""
    process = FORK.Process(target=start, args=(tmp_path / "said", work))
    process.start()
    process.join(seconds)
    return (tmp_path / "said").read_text(), process.exitcode


def start(path, work):
    os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    sys.unraisablehook = sys.__unraisablehook__

    def stage(_arguments):
        with interrupt.listening(grace=1.0):
            work()
            time.sleep(10)
        return 0

    cli._main = stage
    os._exit(cli.main([]))


def kill():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)  # here the handler raises


def in_a_callback():
    """As numba's compiler calls Python."""
    ctypes.CFUNCTYPE(None)(kill)()


def in_a_destructor():
    class Gone:
        def __del__(self):
            kill()

    Gone()


def in_what_raises_something_else():
    try:
        kill()
    except BaseException:
        raise RuntimeError("the compiler has failed") from None


def in_what_swallows_it():
    try:
        kill()
    except BaseException:
        time.sleep(10)


@pytest.mark.parametrize(
    "work", [kill, in_a_callback, in_a_destructor, in_what_raises_something_else, in_what_swallows_it]
)
def test_an_interruption_is_one_line_whenever_it_comes(tmp_path, work):
    began_at = time.monotonic()
    said, status = said_by(tmp_path, work)
    assert (said, status) == (interrupt.NOTICE, 128 + signal.SIGTERM)
    assert time.monotonic() - began_at < 8


def test_what_is_ignored_otherwise_is_said_as_ever(tmp_path):
    def work():
        ctypes.CFUNCTYPE(None)(lambda: 1 / 0)()
        kill()

    said, _ = said_by(tmp_path, work)
    assert "ZeroDivisionError" in said and said.endswith(interrupt.NOTICE)
