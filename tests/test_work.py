"""Items drawn from one list by several workers: every one is done, whoever dies, and none is waited for in vain."""

import os
import threading
import time
from types import SimpleNamespace

import pytest
import workers
from torch import distributed

from fastcondense.workers import work as module
from fastcondense.workers.work import Cut, Fleet, Items


class Files:
    """Items as files that are written when they are done."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def is_finished(self, item):
        return (self.folder / str(item)).exists()

    def finish(self, item, who):
        with (self.folder / str(item)).open("a") as file:
            file.write(f"{who}\n")

    def items(self, count, **more):
        return Items("test", range(count), self.is_finished, **more)

    def who(self, count):
        return [(self.folder / str(item)).read_text().split() for item in range(count)]


@pytest.fixture
def store():
    return distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def members(store, world, patience=0.3):
    """Fleets of one store, each with a connection of its own."""

    def connect():
        return distributed.TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)

    return [Fleet(connect(), rank, world, patience) for rank in range(world)]


def alive(fleet):
    """Lets the heart of a fleet's worker beat until it is told to stop."""
    stop = threading.Event()

    def beat():
        while not stop.is_set():
            fleet.store.add(f"beat/{fleet.rank}", 1)
            time.sleep(0.02)

    threading.Thread(target=beat, daemon=True).start()
    return stop


def test_alone_all_items_are_done_in_turn(tmp_path):
    files = Files(tmp_path)
    files.finish(2, "before")
    settled = []
    draws = []
    for draw in Fleet().draw(files.items(5, settle=lambda: settled.append(len(draws)))):
        draws.append(draw)
        files.finish(draw.item, "me")
    assert [tuple(draw) for draw in draws] == [(0, 1), (1, 3), (3, 4), (4, None)] and settled == [4]
    assert list(Fleet().draw(files.items(5))) == []


def test_alone_what_an_item_needs_is_settled(tmp_path):
    files, pending = Files(tmp_path), []

    def settle():
        while pending:
            files.finish(pending.pop(), "late")

    for item, ahead in Fleet().draw(files.items(4, needs=range, settle=settle)):
        assert ahead is None and all(map(files.is_finished, range(item)))
        pending.append(item)
    assert files.who(4) == [["late"]] * 4


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_item_is_done_once(tmp_path, store, world):
    files, count = Files(tmp_path), 40

    def work(fleet):
        stop = alive(fleet)
        for item, _ in fleet.draw(files.items(count)):
            time.sleep(0.002 * (1 + item % 3))
            files.finish(item, fleet.rank)
        stop.set()
        assert all(map(files.is_finished, range(count)))

    threads = [threading.Thread(target=work, args=(fleet,)) for fleet in members(store, world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    who = files.who(count)
    assert all(len(names) == 1 for names in who)
    assert {names[0] for names in who} == {str(rank) for rank in range(world)}


def test_what_a_dead_worker_has_claimed_goes_to_another(tmp_path, store):
    files, (dead, other) = Files(tmp_path), members(store, 2)
    draws = dead.draw(files.items(30))
    assert next(draws) == (0, 1)  # and never comes back, nor beats
    stop, began_at = alive(other), time.monotonic()
    mine = []
    for item, _ in other.draw(files.items(30)):
        mine.append(item)
        files.finish(item, "other")
    stop.set()
    assert mine == [*range(2, 30), 0, 1] and time.monotonic() - began_at >= dead.patience


def test_a_living_worker_is_waited_for(tmp_path, store):
    files, (slow, other) = Files(tmp_path), members(store, 2)
    stop = alive(slow)
    draws = slow.draw(files.items(3))
    assert next(draws).item == 0

    def finish():
        time.sleep(3 * slow.patience)
        files.finish(0, "slow")

    thread = threading.Thread(target=finish)
    thread.start()
    mine = []
    for item, _ in other.draw(files.items(3)):
        mine.append(item)
        files.finish(item, "other")
    stop.set()
    thread.join()
    assert mine == [1, 2] and files.who(1) == [["slow"]]


def test_an_item_between_claim_and_name_is_not_forgotten(tmp_path, store):
    files, (_, other) = Files(tmp_path), members(store, 2)
    store.add("test/next", 1)  # a worker that died before it wrote its name
    mine = []
    for item, _ in other.draw(files.items(3)):
        mine.append(item)
        files.finish(item, "other")
    assert mine == [1, 2, 0]


def test_needs_are_finished_first_even_by_the_one_that_waits(tmp_path, store):
    """Each item needs the one before it, and the first one's worker is dead."""
    files, fleets = Files(tmp_path), members(store, 3)
    needs = {"needs": lambda item: range(item)}
    next(fleets[0].draw(files.items(9, **needs)))
    order, stops = [], [alive(fleet) for fleet in fleets[1:]]

    def work(fleet):
        for item, ahead in fleet.draw(files.items(9, **needs)):
            assert ahead is None and all(map(files.is_finished, range(item)))
            order.append(item)
            files.finish(item, fleet.rank)

    threads = [threading.Thread(target=work, args=(fleet,)) for fleet in fleets[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for stop in stops:
        stop.set()
    assert order == list(range(9))


def test_what_is_in_hand_is_settled_before_others_are_waited_for(tmp_path, store):
    files, (fleet,) = Files(tmp_path), members(store, 1)
    pending = []

    def settle():
        while pending:
            files.finish(pending.pop(), "late")

    for item, _ in fleet.draw(files.items(4, settle=settle)):
        settle()
        pending.append(item)
    assert files.who(4) == [["late"]] * 4


def test_a_store_that_does_not_answer_is_a_cut(monkeypatch):
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    bounded = module._Bounded("fleet", 0.5)
    assert bounded.add("x", 2) == 2 and bounded.check(["y"]) is False
    bounded.store = SimpleNamespace(add=lambda *_: time.sleep(5))  # a cable that is pulled
    began_at = time.monotonic()
    with pytest.raises(Cut, match="the connection to the other workers is lost; what is finished is kept"):
        bounded.add("x", 1)
    assert time.monotonic() - began_at < 3
    other = module._Bounded("fleet", 5.0)
    del store
    with pytest.raises(Cut):
        other.add("x", 1)


def work(rank, folder):
    files = Files(folder)
    fleet = Fleet.joined()
    assert (fleet.rank, fleet.world, fleet.patience) == (rank, 3, 1.0)
    for item, _ in fleet.draw(files.items(12)):
        if rank == 1:
            os._exit(0)  # without a word
        time.sleep(0.05)
        files.finish(item, rank)


def test_processes_share_the_work_of_one_that_vanishes(tmp_path):
    workers.start(work, 3, tmp_path / "files")
    who = Files(tmp_path / "files").who(12)
    assert all(len(names) == 1 for names in who) and {names[0] for names in who} <= {"0", "2"}


def test_a_beat_ends_with_its_store():
    class Gone:
        def __init__(self):
            self.beats = 0

        def add(self, *_):
            self.beats += 1
            if self.beats == 3:
                raise Cut

    gone = Gone()
    module._beat(gone, 0, 0.0)
    assert gone.beats == 3
