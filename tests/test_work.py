"""Items drawn from one list by several processes: every one is done, whoever dies or sleeps, with the same bits."""

import errno
import hashlib
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from fastcondense.files import write_atomic
from fastcondense.workers.work import Items, draw

FORK = multiprocessing.get_context("fork")


class Files:
    """Items as files of bytes that depend on the item alone; `log` says by whom they were written, and how often."""

    def __init__(self, folder, count):
        self.folder, self.count, self.log = folder, count, folder.parent / "log"

    def is_finished(self, item):
        return (self.folder / str(item)).exists()

    def finish(self, item, who):
        write_atomic(self.folder / str(item), self.bits(item))
        with self.log.open("a") as file:
            file.write(f"{item} {who}\n")

    def bits(self, item):
        return hashlib.sha256(str(item).encode()).digest() * 100

    def items(self, **more):
        return Items("test", self.folder, range(self.count), self.is_finished, **more)

    def who(self):
        """Who has finished each item, once they are seen to be whole, and nothing else to be left."""
        for item in range(self.count):
            assert (self.folder / str(item)).read_bytes() == self.bits(item)
        assert len(list(self.folder.iterdir())) == self.count
        found = {}
        for line in self.log.read_text().splitlines():
            found.setdefault(int(line.split()[0]), []).append(line.split()[1])
        return found


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCONDENSE_PATIENCE", "0.4")
    return lambda count: Files(tmp_path / "items", count)


def start(files, who, seconds=0.03, patience=0.8):
    """Another process that does items, each in so many seconds, and puts what it begins in a queue."""
    queue = FORK.SimpleQueue()
    process = FORK.Process(target=work, args=(files, who, seconds, patience, queue))
    process.start()
    return process, queue


def work(files, who, seconds, patience, queue):
    os.environ["FASTCONDENSE_PATIENCE"] = str(patience)
    for item, _ in draw(files.items()):
        queue.put(item)
        time.sleep(seconds)
        files.finish(item, who)


def ended(*processes):
    for process in processes:
        process.join(30)
        assert process.exitcode == 0


def test_alone_all_items_are_done_in_turn(files):
    done = files(5)
    done.finish(2, "before")
    settled, draws = [], []
    for drawn in draw(done.items(settle=lambda: settled.append(len(draws)))):
        draws.append(drawn)
        done.finish(drawn.item, "me")
    assert [tuple(drawn) for drawn in draws] == [(0, 1), (1, 3), (3, 4), (4, None)] and settled == [4]
    assert list(draw(done.items())) == [] and len(done.who()) == 5


def test_what_is_in_hand_is_settled_before_others_are_waited_for(files):
    done, pending = files(4), []

    def settle():
        while pending:
            done.finish(pending.pop(), "late")

    for item, _ in draw(done.items(settle=settle)):
        settle()
        pending.append(item)
    assert done.who() == {item: ["late"] for item in range(4)}


@pytest.mark.parametrize("world", [2, 8])
def test_every_item_is_done_once(files, world):
    """By threads with claims of their own, which begin at the same moment."""
    done, begin = files(40), threading.Barrier(world)

    def take(who):
        begin.wait()
        for item, _ in draw(done.items()):
            time.sleep(0.002 * (1 + item % 3))
            done.finish(item, who)

    threads = [threading.Thread(target=take, args=(str(who),)) for who in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(len(who) for who in done.who().values()) == {1: 40}
    assert {name for who in done.who().values() for name in who} == {str(who) for who in range(world)}


def test_two_launches_at_once_share_the_items_and_one_that_is_killed_loses_none(files):
    done = files(30)
    (first, _), (second, _), (killed, begun) = (start(done, who) for who in ("first", "second", "killed"))
    for _ in range(3):
        begun.get()
    killed.kill()
    ended(first, second)
    who = done.who()
    assert Counter(map(len, who.values())) == {1: 30}
    assert {name for names in who.values() for name in names} >= {"first", "second"}


def test_a_claim_of_a_finished_item_is_left_by_nobody(files):
    done = files(3)
    done.finish(1, "killed before it let go")
    (done.folder / ".test.claims").mkdir()
    for name in ("00001.0", "\u00b2.0", "1.\u00b2", "x"):  # the others are no claims
        (done.folder / ".test.claims" / name).touch()
    for item, _ in draw(done.items()):
        done.finish(item, "me")
    assert {path.name for path in (done.folder / ".test.claims").iterdir()} == {"\u00b2.0", "1.\u00b2", "x"}
    shutil.rmtree(done.folder / ".test.claims")
    assert len(done.who()) == 3


def test_an_owner_that_is_frozen_and_wakes_up_later_destroys_nothing(files):
    """Another does its item when the patience is over; it ends as if nothing had happened."""
    done = files(12)
    frozen, begun = start(done, "frozen", seconds=0.2)
    item = begun.get()
    os.kill(frozen.pid, signal.SIGSTOP)
    ended(start(done, "other")[0])
    assert done.who()[item] == ["other"]
    os.kill(frozen.pid, signal.SIGCONT)
    ended(frozen)
    who = done.who()
    assert who[item] == ["other", "frozen"]  # the same bits twice
    assert all(names == ["other"] for number, names in who.items() if number != item)


@pytest.mark.parametrize("hours", [-1, 1])
def test_clocks_of_others_do_not_count(files, hours):
    """An owner whose clock is an hour off lives while its time moves, though backwards, and is lost when it stands."""
    done = files(2)
    claims = done.folder / ".test.claims"
    claims.mkdir(parents=True)
    (claims / "00000.0").write_text("elsewhere\nanother launch\n0\n")
    stop, order = threading.Event(), []

    def touch():
        beats = 0
        while not stop.wait(0.05):
            beats += 1
            moment = time.time() + 3600 * hours - beats
            os.utime(claims / "00000.0", (moment, moment))

    threading.Thread(target=touch, daemon=True).start()
    threading.Timer(1.2, stop.set).start()
    began_at = time.monotonic()
    for item, _ in draw(done.items()):
        order.append((item, time.monotonic() - began_at))
        done.finish(item, "me")
    assert [item for item, _ in order] == [1, 0]
    assert order[0][1] < 0.4 and 1.2 < order[1][1] < 4
    assert done.who() == {0: ["me"], 1: ["me"]}


def test_claims_of_workers_that_were_started_again_are_theirs_at_once(files, monkeypatch):
    done = files(3)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1" if name == "WORLD_SIZE" else "0")
    monkeypatch.setenv("FASTCONDENSE_LAUNCHER", str(done.folder))
    monkeypatch.setenv("FASTCONDENSE_LAUNCH", "a launch")
    monkeypatch.setenv("FASTCONDENSE_ATTEMPT", "2")
    monkeypatch.setenv("FASTCONDENSE_PATIENCE", "1000")
    claims = done.folder / ".test.claims"
    claims.mkdir(parents=True)
    (claims / "00001.3").write_text("here\na launch\n1\n")
    for item, _ in draw(done.items()):
        done.finish(item, "me")
    assert len(done.who()) == 3


def test_a_full_disk_loses_no_item(files, monkeypatch):
    """Two writers: one meets ENOSPC and ends, and what it had is the other's at once; then nothing can be claimed."""
    done = files(8)
    with pytest.raises(OSError, match="No space left"):
        for item, _ in draw(done.items()):
            with monkeypatch.context() as patched:
                if item == 2:
                    patched.setattr("os.fsync", full)
                done.finish(item, "full")
    assert sorted(path.name for path in done.folder.iterdir()) == ["0", "1"]
    ended(start(done, "other", seconds=0, patience=1000)[0])
    assert done.who() == {item: ["full" if item < 2 else "other"] for item in range(8)}
    monkeypatch.setattr(Path, "mkdir", full)
    done.count = 9
    with pytest.raises(OSError, match="No space left"):
        next(draw(done.items()))


def full(*_args, **_more):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_claims_are_not_made_behind_a_link(files, tmp_path):
    done = files(1)
    done.folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (done.folder / ".test.claims").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"\.test\.claims is a link to elsewhere; remove it"):
        next(draw(done.items()))
    assert not list((tmp_path / "elsewhere").iterdir())
