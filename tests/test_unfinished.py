"""Saved states of jobs: of every kind of recover, to the same bits, at the moment a signal comes."""

import multiprocessing
import os
import signal
import time
from datetime import timedelta

import pytest
import torch
from launches import wait_for
from torch.distributed import TCPStore

from fastcondense.data.jobs import Job
from fastcondense.recover.unfinished import Unfinished, remaining
from fastcondense.workers import interrupt
from fastcondense.workers.interrupt import Interrupted, held

CPU, JOB = torch.device("cpu"), Job(3, 0, 1, 0, 2)


@pytest.fixture
def request_stop(monkeypatch):
    """Asks for the end, as a signal would, without one."""
    return lambda: monkeypatch.setattr(interrupt, "_requested", int(signal.SIGTERM))


class Counter:
    """A job whose state is the sum of the iterations that it did."""

    def __init__(self):
        self.total = torch.zeros(1, dtype=torch.int64)
        self.done = []

    def state(self):
        return {"total": self.total}

    def restore(self, tensors):
        self.total.copy_(tensors["total"])

    def run(self, unfinished, stop=None, at=None):
        for iteration in remaining(10, unfinished, CPU, self.state, self.restore):
            self.total += iteration
            self.done.append(iteration)
            if iteration == at:
                stop()


def test_a_signal_saves_the_state_and_the_next_one_goes_on(tmp_path, request_stop, monkeypatch):
    unfinished, first, second = Unfinished(tmp_path, JOB, "mine"), Counter(), Counter()
    with pytest.raises(Interrupted) as error:
        first.run(unfinished, request_stop, at=6)
    assert error.value.number == signal.SIGTERM and first.done == list(range(7)) and interrupt._held == 0
    monkeypatch.undo()
    second.run(Unfinished(tmp_path, JOB, "mine"))
    assert second.done == [7, 8, 9] and int(second.total) == 45
    unfinished.remove()
    assert not list(tmp_path.iterdir())


def test_a_signal_in_the_last_iteration_lets_the_job_end(tmp_path, request_stop):
    counter = Counter()
    with pytest.raises(Interrupted):  # when the job is over, which is then done again
        counter.run(Unfinished(tmp_path, JOB, "mine"), request_stop, at=9)
    assert counter.done == list(range(10)) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("first", [0, 4])
def test_it_is_shown_how_far_a_job_is(tmp_path, first, monkeypatch):
    monkeypatch.setattr("fastcondense.recover.unfinished._SECONDS_BETWEEN_WORDS", -1.0)
    shown = []
    unfinished = Unfinished(tmp_path, JOB, "mine", show=lambda done, count: shown.append((done, count)))
    if first:
        unfinished.write(first, {"total": torch.tensor([6])})
    Counter().run(unfinished)
    assert shown == [(done, 10) for done in range(first + 1, 11)]


def test_states_are_written_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr("fastcondense.recover.unfinished._SECONDS_BETWEEN", 0.0)
    unfinished = Unfinished(tmp_path, JOB, "mine")
    Counter().run(unfinished)
    iteration, tensors = unfinished.read()
    assert iteration == 9 and int(tensors["total"]) == sum(range(9))


@pytest.mark.parametrize("case", ["other", "damaged", "none"])
def test_what_is_not_this_jobs_state_is_left_alone(tmp_path, case, monkeypatch):
    monkeypatch.setattr("fastcondense.recover.unfinished._SECONDS_BETWEEN", 0.0)
    mine = Unfinished(tmp_path, JOB, "mine")
    if case != "none":
        Counter().run(Unfinished(tmp_path, JOB, "other" if case == "other" else "mine"))
    if case == "damaged":
        mine.path.write_bytes(mine.path.read_bytes()[:-5])
    counter = Counter()
    counter.run(mine)
    assert counter.done == list(range(10))


def listen(mode, said):
    """What a process does that is sent a signal once it is ready."""
    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY), 1)
    os.setsid()
    try:
        with interrupt.listening(grace=2.0):
            os.write(1, b"ready\n")
            if mode == "held":
                with interrupt.held():
                    time.sleep(0.5)
                    os.write(1, b"saved\n")
            elif mode == "library":  # nobody answers, and no Python code runs
                TCPStore("127.0.0.1", 1, None, False, timedelta(seconds=30))
            else:
                time.sleep(20)
    except KeyboardInterrupt as error:
        os.write(1, f"{type(error).__name__} {interrupt.status_of(error)}\n".encode())
        if mode == "stuck":
            time.sleep(20)
    os._exit(0)


@pytest.mark.parametrize(
    ("mode", "wanted", "status"),
    [
        ("held", ["saved", "Interrupted 143"], 0),
        ("raised", ["Interrupted 143"], 0),
        ("stuck", ["Interrupted 143"], 143),
        ("library", [], 143),
    ],
)
def test_signals_are_held_where_states_are_saved_and_raised_elsewhere(tmp_path, mode, wanted, status):
    """The first signal is raised at once, or at the end of a block that holds it; the clock that it starts ends a
    process that does not come back."""
    said = tmp_path / "said"
    process = multiprocessing.get_context("fork").Process(target=listen, args=(mode, said))
    process.start()
    wait_for(lambda: said.exists() and said.read_text() == "ready\n")
    began_at = time.monotonic()
    time.sleep(1.0 if mode == "library" else 0.0)  # until it is in the library
    os.kill(process.pid, signal.SIGTERM)
    if mode == "held":
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGINT)  # a second one changes nothing
    process.join(20)
    assert (said.read_text().splitlines()[1:], process.exitcode) == (wanted, status)
    assert time.monotonic() - began_at < 8


def test_blocks_inside_each_other_hold_together(request_stop):
    with pytest.raises(Interrupted), held():
        with pytest.raises(Interrupted), held():
            request_stop()
        raise Interrupted(signal.SIGTERM)
    assert interrupt._held == 0
