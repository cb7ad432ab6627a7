"""Work that all processes on a run draw from one list, whichever launch or machine they are of: claims are files.

A claim is created, which only one can, and touched every few seconds by its owner. One that stands still for the
patience of another process, by that one's own clock, is taken over by a rename, which again only one can. An item is
finished when its file is there, whoever wrote it. Two that do the same write the same bits, so a wrong guess about who
is lost, such as a process that was frozen, costs time alone.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from ..loaders.reading import read_file
from ..log import Log
from .launched import attempt, launch_name, num_launched

Item = TypeVar("Item")
PATIENCE = 30.0
"""Seconds without a touch, after which a claim's owner is lost; over NFS a touch may be seen some seconds later."""
SECONDS_BETWEEN_TOUCHES = 2.0
AHEAD = 2
"""An item is claimed before the one in hand is finished while so many are left for each claim of others."""
SPREAD = 2
"""Each process begins at a place of its own among the first items, so many for each claim of others: where all begin at
the first one, a thousand claim it, and 999 the second."""
MANY = 2
"""Finished items that are met one by one before all of them are found by listing their folder."""
SHARE = 0.02
"""Of its time, that a process spends on asking whether others are lost while there is something else to do."""
POLLS = (0.05, 2.0)
"""Seconds between two looks at what others are doing, from the first to the last."""


class Draw(NamedTuple, Generic[Item]):
    """An item to do now, and the one that this process is going to do next if it knows that already."""

    item: Item
    ahead: Item | None


@dataclass(frozen=True)
class Items(Generic[Item]):
    """A list that all processes know alike."""

    name: str
    """Name that no other list in `folder` has."""
    folder: Path
    """A folder in that of the run; claims are made in a folder of their own there, which goes when there are none."""
    items: Sequence[Item]
    is_finished: Callable[[Item], bool]
    """Whether what the item makes is there, whoever made it."""
    file_name: Callable[[Item], str] | None = None
    """Name, in `folder`, of the file that is there when an item is finished, if there is one that tells."""
    settle: Callable[[], None] = lambda: None
    """Is called before others are waited for: finishes what this process has in hand, such as files being written."""


def draw(work: Items[Item]) -> Iterator[Draw[Item]]:
    """Yields what this process is to do, and returns when all items are finished, by whichever process.

    An item stays this process' own until its file is there, or until the generator ends, however it does. Raises
    OSError if nothing can be claimed in the folder.
    """
    todo, pause, ahead = dict(enumerate(work.items)), POLLS[0], None
    num_others = num_launched() - 1  # who may not have claimed anything yet
    with contextlib.closing(_Claims(work.folder / f".{work.name}.claims")) as claims:
        while todo:
            if ahead is None or work.is_finished(work.items[ahead]):  # this process may have been frozen for long
                ahead = _next(work, todo, claims)
            number = ahead
            if number is None:
                work.settle()
                number = _next(work, todo, claims, is_waiting=True)
            if number is None:
                if todo:
                    time.sleep(pause)
                    pause = min(2 * pause, POLLS[1] * max(1.0, len(claims.seen) / 1000))
                continue
            ahead, pause = None, POLLS[0]
            if len(todo) - len(claims.mine) > AHEAD * max(num_others, len(claims.seen.keys() - claims.mine)):
                ahead = _next(work, todo, claims)
            yield Draw(work.items[number], None if ahead is None else work.items[ahead])
        claims.look()
        for path in claims.seen.values():  # of owners that were lost when they had just finished
            path.unlink(missing_ok=True)


def _next(work: Items[Item], todo: dict[int, Item], claims: _Claims, is_waiting: bool = False) -> int | None:
    """An item that this process can do, which is its own from now on; drops finished ones on the way.

    is_waiting: nothing is in hand, and others' items are looked at, which may be finished.
    """
    claims.look()
    if is_waiting and work.file_name is not None:
        _drop_listed(work, todo, claims)
    is_asking = is_waiting and work.file_name is None
    turns, lost_to_others, num_met = claims.turns(todo), set[int](), 0
    while turns:
        number = turns.popleft()
        is_mine, is_claimed = number in claims.mine, number in claims.seen
        if number not in todo or (is_claimed and not (is_mine or is_asking or number in claims.lost())):
            continue
        if work.is_finished(todo[number]):
            claims.release(number)
            del todo[number]
            num_met += 1
            if num_met == MANY and work.file_name is not None:
                _drop_listed(work, todo, claims)
        elif is_mine and is_waiting:
            return number
        elif not is_mine and claims.take(number):
            if not work.is_finished(todo[number]):  # else its owner has finished it and let go since it was looked at
                return number
            claims.release(number)
            del todo[number]
        elif not is_mine and not is_claimed:  # another was faster; where one is, there may be many
            lost_to_others.add(number)
            claims.look()
            turns = deque(other for other in claims.turns(todo) if other not in lost_to_others)
    return None


def _drop_listed(work: Items[Item], todo: dict[int, Item], claims: _Claims) -> None:
    """Drops the items that others have finished, by one look at the folder."""
    assert work.file_name is not None
    names = set(os.listdir(work.folder))
    for number in [number for number, item in todo.items() if work.file_name(item) in names]:
        if number not in claims.mine:
            del todo[number]


class _Claims:
    """The claims of a list, as this process sees them: files NUMBER.TURN, of which the last turn counts."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.patience = _patience()
        self.mine: dict[int, Path] = {}
        self.seen: dict[int, Path] = {}
        self.since: dict[str, float] = {}
        """When each name was seen first, by this process' clock; long ago if it was there from the beginning."""
        self.sights: dict[int, tuple[tuple[str, int], float]] = {}
        """The last sight of each claim: its name and time, and when by this process' clock."""
        self.place = zlib.crc32(f"{socket.gethostname()} {os.getpid()} {threading.get_native_id()}".encode())
        """A number that others hardly have."""
        self.has_looked = False
        self.ask_again, self._lost = 0.0, set[int]()
        self.touching: threading.Thread | None = None
        self.ended = threading.Event()

    def look(self) -> None:
        """Sees which items are claimed."""
        now = time.monotonic() if self.has_looked else -math.inf
        self.seen, self.has_looked = {}, True
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(self.folder), key=lambda name: (len(name), name)):
                number, _, turn = name.partition(".")
                if f"{number}{turn}".isascii() and number.isdigit() and turn.isdigit():
                    self.seen[int(number)] = self.folder / name
        self.since = {path.name: self.since.get(path.name, now) for path in self.seen.values()}

    def turns(self, todo: Iterable[int]) -> deque[int]:
        """The order in which this process looks at what is to do: its own first, then from its own place on."""
        turns = deque(number for number in todo if number not in self.mine)
        others = max(num_launched() - 1, len(self.seen.keys() - self.mine))
        turns.rotate(-(self.place % max(1, min(len(turns), SPREAD * others))))
        turns.extendleft(self.mine)
        return turns

    def lost(self) -> set[int]:
        """Items whose owners are lost, asked anew when it is time; none that was claimed a moment ago."""
        begun = time.monotonic()
        if begun >= self.ask_again:
            young = begun - self.patience / 8
            others = self.seen.keys() - self.mine
            self._lost = {n for n in others if self.since[self.seen[n].name] < young and self.is_still(n)}
            now = time.monotonic()
            self.ask_again = now + max(self.patience / 8, (now - begun) / SHARE)
        return self._lost

    def is_still(self, number: int) -> bool:
        """Whether the owner of a claim is lost."""
        path, now = self.seen[number], time.monotonic()
        try:
            sight = path.name, path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        if self.sights.get(number, (None, 0.0))[0] != sight:
            self.sights[number] = sight, now
            if _is_of_ended_attempt(path):
                self.sights[number] = sight, now - 2 * self.patience
        return now - self.sights[number][1] > self.patience

    def take(self, number: int) -> bool:
        """Claims what nobody has, or what a lost owner had; False if another was faster, or the owner is not lost."""
        old, whose = self.seen.get(number), f"{socket.gethostname()}\n{launch_name()}\n{attempt()}\n"
        try:
            if old is None:
                path = self.folder / f"{number:05d}.0"
                self._create(path, whose)
            elif self.is_still(number):
                path = old.with_suffix(f".{int(old.suffix[1:]) + 1}")
                old.rename(path)
                _write(path, "w", whose)
            else:
                return False
        except (FileExistsError, FileNotFoundError):
            return False
        self.mine[number] = path
        if self.touching is None:
            self.touching = threading.Thread(target=self._touch, daemon=True)
            self.touching.start()
        return True

    def _create(self, path: Path, whose: str) -> None:
        if self.touching is None and self.folder.is_symlink():
            raise ValueError(f"{self.folder} is a link to elsewhere; remove it")
        for _ in range(100):  # whoever has just let go of the last claim removes the folder
            with contextlib.suppress(FileNotFoundError):
                _write(path, "x", whose)
                return
            self.folder.mkdir(parents=True, exist_ok=True)
        raise FileNotFoundError

    def release(self, number: int) -> None:
        """Lets go of a claim, if it is this process' own."""
        path = self.mine.pop(number, None)
        if path is not None:
            self.seen.pop(number, None)
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets go of all."""
        self.ended.set()
        if self.touching is not None:
            self.touching.join()
        for number in list(self.mine):
            self.release(number)
        with contextlib.suppress(OSError):  # there are others
            self.folder.rmdir()

    def _touch(self) -> None:
        """Tells others that this process is alive."""
        while not self.ended.wait(min(SECONDS_BETWEEN_TOUCHES, self.patience / 4)):
            for path in list(self.mine.values()):
                with contextlib.suppress(OSError):  # it was taken over, or let go just now
                    os.utime(path)


def _write(path: Path, mode: str, whose: str) -> None:
    """Writes whose a claim is; on a full disk it holds, though nobody can read that."""
    file = path.open(mode, errors="replace")
    with contextlib.suppress(OSError), file:
        file.write(whose)


def _patience() -> float:
    """Seconds, as FASTCONDENSE_PATIENCE says or PATIENCE. Raises ValueError for what is no such number."""
    text = os.environ.get("FASTCONDENSE_PATIENCE", "") or str(PATIENCE)
    with contextlib.suppress(ValueError):
        if 0.1 <= float(text) <= 1e6:
            return float(text)
    raise ValueError(f"the variable FASTCONDENSE_PATIENCE must be seconds, from 0.1 to 1000000, got {text!r}")


def _is_of_ended_attempt(path: Path) -> bool:
    """Whether a claim is of this launch's workers before they were started again."""
    with contextlib.suppress(ValueError):
        _, name, before, _ = read_file(path).decode().split("\n")
        return name == launch_name() and int(before) < attempt()
    return False


def shared(log: Log, what: str, items: Items[Item]) -> Iterator[Draw[Item]]:
    """This process' part of work that all processes on the run share, with progress; see `draw`."""
    first = sum(map(items.is_finished, items.items))
    with log.progress(what, len(items.items), first) as show:
        for number, drawn in enumerate(draw(items)):
            yield drawn
            show(first + number + 1)
