"""Work that the workers of a launch draw from one list: a shared counter says who takes what, and nobody waits.

Items are files in the end: one is finished when its file is there, whoever wrote it. An item of a worker that is lost
goes to another one. Two that do the same write the same bits, so a wrong guess about who is lost costs time alone.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from torch import distributed

from .distributed import is_launched, rank, world_size

Item = TypeVar("Item")
_SECONDS_BETWEEN_BEATS = 2.0
_PATIENCE = 30.0  # without a beat, after which a worker is lost
_POLLS = (0.05, 2.0)  # seconds between two looks at what others have finished, from the first to the last
_LOOKS = 8  # at items of others that are not finished, between two pauses
_AHEAD = 2  # an item is claimed before the one in hand is finished while so many a worker are left


class Store(Protocol):
    """What is needed of a store of torch.distributed."""

    def add(self, key: str, amount: int) -> int: ...
    def set(self, key: str, value: str) -> Any: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...
    def compare_set(self, key: str, expected: str, desired: str) -> bytes: ...


class Cut(ValueError):
    """The store cannot be reached: this worker is cut off from the others, or they have ended."""

    def __init__(self) -> None:
        super().__init__("the connection to the other workers is lost; what is finished is kept, and is not done again")


class Draw(NamedTuple, Generic[Item]):
    """An item to do now, and the one that this worker is going to do next if it knows that already."""

    item: Item
    ahead: Item | None


@dataclass(frozen=True)
class Items(Generic[Item]):
    """A list that all workers know alike."""

    name: str
    """Which no other list of a launch has."""
    items: Sequence[Item]
    is_finished: Callable[[Item], bool]
    """Whether what the item makes is there; asked once for each item by whoever draws it, and while others are waited
    for."""
    needs: Callable[[Item], Iterable[Item]] | None = None
    """Items that have to be finished before, all of them earlier in the list."""
    settle: Callable[[], None] = lambda: None
    """Called before others are waited for: finishes what this worker has in hand, such as files being written."""


class Fleet:
    """The workers of a launch, of which this process is one; by default it is alone."""

    def __init__(self, store: Store | None = None, rank: int = 0, world: int = 1, patience: float = _PATIENCE):
        self.store, self.rank, self.world, self.patience = store, rank, world, patience
        self.pulse: dict[str, tuple[int, float]] = {}

    @staticmethod
    def joined() -> Fleet:
        """That of this process, which torchrun or `--gpus` has started; its heart beats from now on."""
        if not is_launched():
            return Fleet()
        name = f"fleet/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"  # the store may outlive an attempt
        patience = float(os.environ.get("FASTCONDENSE_PATIENCE", _PATIENCE))
        pace = min(_SECONDS_BETWEEN_BEATS, patience / 4)
        threading.Thread(target=_beat, args=(_Bounded(name, patience), rank(), pace), daemon=True).start()
        return Fleet(_Bounded(name, patience), rank(), world_size(), patience)

    def draw(self, work: Items[Item]) -> Iterator[Draw[Item]]:
        """Yields what this worker is to do, and returns when all items are finished, by whichever worker.

        An item counts as done when the next one is asked for. Raises Cut if the store is lost while it is needed.
        """
        if self.store is None:
            todo = deque(item for item in work.items if not work.is_finished(item))
            while todo:
                if work.needs is not None:
                    work.settle()
                yield Draw(todo.popleft(), todo[0] if todo and work.needs is None else None)
            work.settle()
            return
        try:
            yield from _Drawing(self, self.store, work).draw()
        except Cut:
            if not all(map(work.is_finished, work.items)):  # else the first worker may have ended before this one
                raise

    def is_lost(self, worker: str) -> bool:
        """Whether a worker has shown no sign of life for `patience` seconds of this process' own clock."""
        assert self.store is not None
        count, now = self.store.add(f"beat/{worker}", 0), time.monotonic()
        if self.pulse.get(worker, (-1, 0.0))[0] != count:
            self.pulse[worker] = count, now
        return now - self.pulse[worker][1] > self.patience


class _Drawing(Generic[Item]):
    """One worker's way through a list."""

    def __init__(self, fleet: Fleet, store: Store, work: Items[Item]):
        self.fleet, self.store, self.work, self.me = fleet, store, work, str(fleet.rank)
        self.claimed: deque[int] = deque()

    def draw(self) -> Iterator[Draw[Item]]:
        work, places = self.work, {item: number for number, item in enumerate(self.work.items)}
        while (number := self._next()) is not None:
            item = work.items[number]
            if work.needs is not None:
                yield from self._wait_for([places[needed] for needed in work.needs(item)])
            self._claim_ahead(number)
            yield Draw(item, work.items[self.claimed[0]] if self.claimed else None)
        yield from self._wait_for(range(len(work.items)))

    def _next(self) -> int | None:
        """The number of an item that is not finished, and nobody's but this worker's; None if there is none left."""
        return self.claimed.popleft() if self.claimed else self._claim()

    def _claim(self) -> int | None:
        while (number := self.store.add(self._key("next"), 1) - 1) < len(self.work.items):
            self.store.set(self._key(f"owner/{number}"), self.me)
            if not self.work.is_finished(self.work.items[number]):
                return number
        return None

    def _claim_ahead(self, number: int) -> None:
        if self.work.needs is None and len(self.work.items) - number > _AHEAD * self.fleet.world:
            ahead = self._claim()
            if ahead is not None:
                self.claimed.append(ahead)

    def _wait_for(self, numbers: Sequence[int]) -> Iterator[Draw[Item]]:
        """Until these items are finished; yields those whose workers are lost."""
        work, left, pause = self.work, deque(numbers), _POLLS[0]
        work.settle()
        while left:
            lost = self._find_lost(left)
            if lost is not None:
                yield Draw(work.items[lost], None)
                work.settle()
                pause = _POLLS[0]
            elif left:
                time.sleep(pause)
                pause = min(2 * pause, _POLLS[1] * max(1.0, self.fleet.world / 1000))

    def _find_lost(self, left: deque[int]) -> int | None:
        """One of a few of the items, if its worker is lost: it is this worker's now. Drops finished ones on the way."""
        looks = _LOOKS
        while left and looks:
            number = left.popleft()
            if self.work.is_finished(self.work.items[number]):
                continue
            left.append(number)
            if self._take(number):
                return number
            looks -= 1
        return None

    def _take(self, number: int) -> bool:
        """Whether an item that is claimed but not finished is this worker's to do."""
        key = self._key(f"owner/{number}")
        owner = self.store.get(key).decode() if self.store.check([key]) else ""
        if owner == self.me:
            return True
        if not self.fleet.is_lost(owner or f"nobody/{key}"):
            return False
        return self.store.compare_set(key, owner, self.me).decode() == self.me

    def _key(self, name: str) -> str:
        return f"{self.work.name}/{name}"


class _Bounded:
    """A connection of its own to the store of the launch, whose every answer is waited for so many seconds.

    Without the bound, a cable that is pulled would be noticed after a quarter of an hour. Raises Cut.
    """

    def __init__(self, name: str, seconds: float):
        host, port, limit = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timedelta(seconds=seconds)
        store = distributed.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)
        self.store, self.seconds = distributed.PrefixStore(name, store), seconds
        self.questions: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        while True:
            method, arguments = self.questions.get()
            try:
                self.answers.put(getattr(self.store, method)(*arguments))
            except distributed.DistError as error:
                self.answers.put(error)

    def _ask(self, method: str, *arguments: Any) -> Any:
        self.questions.put((method, arguments))
        try:
            answer = self.answers.get(timeout=self.seconds)
        except queue.Empty:
            raise Cut from None
        if isinstance(answer, distributed.DistError):
            raise Cut from answer
        return answer

    def add(self, key: str, amount: int) -> int:
        return self._ask("add", key, amount)

    def set(self, key: str, value: str) -> None:
        self._ask("set", key, value)

    def get(self, key: str) -> bytes:
        return self._ask("get", key)

    def check(self, keys: list[str]) -> bool:
        return self._ask("check", keys)

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        return self._ask("compare_set", key, expected, desired)


def _beat(store: Store, rank: int, seconds: float) -> None:
    """Tells the others that this worker is alive, until the store is gone or the process ends."""
    with contextlib.suppress(Cut):
        while True:
            store.add(f"beat/{rank}", 1)
            time.sleep(seconds)
