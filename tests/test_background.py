"""What goes on beside a job: writes one at a time, values made ahead."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastcondense.recover.background import Ahead, Writer, beside, prepare


def test_writes_are_in_order_and_done_at_the_end():
    done, main = [], threading.get_ident()

    def write(number):
        time.sleep(0.02)
        done.append((number, threading.get_ident() != main))

    with Writer() as writer:
        for number in range(4):
            writer(lambda number=number: write(number))
            assert len(done) >= number  # the one before has ended
    assert done == [(number, True) for number in range(4)]


def test_an_error_is_raised_by_the_next_call_and_at_the_end():
    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Writer() as writer:
        writer(fail)
        writer(lambda: None)
    with pytest.raises(OSError, match="disk full"), Writer() as writer:
        writer(fail)
    with pytest.raises(OSError, match="disk full"), Writer() as writer:
        writer(fail)
        writer.settle()


def test_an_error_of_the_block_is_not_hidden_by_one_of_the_writer():
    def fail():
        raise OSError("disk full")

    with pytest.raises(KeyError), Writer() as writer:
        writer(fail)
        raise KeyError("block")


def test_a_value_is_made_ahead_once_and_others_in_turn():
    made, running = [], []

    def function(key):
        running.append(key)
        assert len(running) == 1  # one thread for all
        time.sleep(0.02)
        running.pop()
        made.append(key)
        return 10 * key

    thread = ThreadPoolExecutor(1)
    first, second = Ahead(function, thread), Ahead(function, thread)
    prepare(3, first, second, function, None)
    assert (first(3), second(3)) == (30, 30) and made == [3, 3]
    assert first(3) == 30 and made == [3, 3, 3]  # a value is given out once
    first.prepare(4)
    assert first(5) == 50 and first(4) == 40 and made == [3, 3, 3, 4, 5, 4]


def test_an_error_of_a_value_made_ahead_is_raised_where_it_is_asked_for():
    def fail(_):
        raise ValueError("no image can be read")

    ahead = Ahead(fail, ThreadPoolExecutor(1))
    ahead.prepare(1)
    with pytest.raises(ValueError, match="no image can be read"):
        ahead(1)


def test_a_cpu_keeps_its_functions():
    functions = [str, None]
    assert beside(torch.device("cpu"), *functions) == functions
    ahead, missing = beside(torch.device("cuda"), str, None)
    assert isinstance(ahead, Ahead) and ahead(7) == "7" and missing is None
