"""How long a fleet takes for a run, simulated: job times as measured, workers that die, one counter for all.

Event by event, as fastcondense/workers/work.py draws: the largest jobs first, one claimed ahead while many are left;
what a dead worker had goes to another once the patience is over, from the state that it saved last, and it is replaced
after a while. Efficiency is the work
that was needed over the time that all workers were paid for. The store's load is counted, and a store is loaded for
real to see what it can answer.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from session import Session
from torch import distributed

from fastcondense.recover import unfinished
from fastcondense.rng import Stream
from fastcondense.workers import work

WORKERS = (1, 8, 64, 1024, 10_000)
QUICK = {"workers": [1, 8], "jobs_per_worker": [2], "store_seconds": 0.2}
MEAN_HOURS_BETWEEN_FAILURES = 1000.0
"""Of one worker: a node of a large cluster fails every few weeks."""
_QUESTIONS_PER_JOB = 2  # a worker counts on, and writes its name


@dataclass(frozen=True)
class Fleet:
    """What is simulated: workers, jobs a worker, and how they fail."""

    workers: int
    jobs: int
    restart: float = 30.0
    """Seconds until a dead worker is replaced."""
    failures: bool = True


@dataclass(frozen=True)
class Outcome:
    """Of one fleet."""

    workers: int
    jobs: int
    hours: float
    efficiency: float
    deaths: int
    store_per_second: float


def job_seconds(shards: Path | None, count: int, stream: Stream) -> np.ndarray:
    """Seconds of `count` jobs, drawn from those of a run's log, or from a spread of 3 % about 600 s."""
    if shards is None:
        return 600 * np.exp(0.03 * stream.normal([(0, 0)], count).double().numpy()[0])
    events = [json.loads(line) for path in shards.glob("log*.jsonl") for line in path.read_text().splitlines()]
    measured = np.array([event["seconds"] for event in events if event["event"] == "job"])
    if not len(measured):
        raise ValueError(f"{shards} has no finished job in its logs")
    return measured[(stream.uniform(np.arange(count), 0, 2)[0] * len(measured)).astype(int)]


def simulate(fleet: Fleet, seconds: np.ndarray, stream: Stream) -> Outcome:
    """Runs a fleet to its end."""
    todo = np.argsort(seconds).tolist()  # the largest at the end, where it is taken from
    lost: list[
        tuple[float, int, float]
    ] = []  # when the patience with a dead worker is over, its job, what is left of it
    events = [(0.0, worker, -1) for worker in range(fleet.workers)]  # when, who is free, and what it has finished
    dies_at = [_life(stream, worker, 0) if fleet.failures else np.inf for worker in range(fleet.workers)]
    poll = work._POLLS[1] * max(1.0, fleet.workers / 1000)
    deaths = finished = 0
    while True:
        now, worker, job = heapq.heappop(events)
        finished += job >= 0
        if finished == fleet.jobs:
            break
        if todo:
            job = todo.pop()
            left = seconds[job]
        elif lost and lost[0][0] <= now:
            _, job, left = heapq.heappop(lost)
        else:
            if fleet.failures:  # somebody may still die
                heapq.heappush(events, (now + poll, worker, -1))
            continue
        end = now + left
        if end < dies_at[worker]:
            heapq.heappush(events, (end, worker, job))
            continue
        deaths += 1
        lost_at = dies_at[worker] + work._PATIENCE
        saved = (dies_at[worker] - now) // unfinished._SECONDS_BETWEEN * unfinished._SECONDS_BETWEEN
        heapq.heappush(lost, (lost_at, job, left - saved))
        if len(todo) > work._AHEAD * fleet.workers:  # it had claimed another one
            ahead = todo.pop()
            heapq.heappush(lost, (lost_at, ahead, seconds[ahead]))
        back = dies_at[worker] + fleet.restart
        dies_at[worker] = back + _life(stream, worker, deaths)
        heapq.heappush(events, (back, worker, -1))
    beats = fleet.workers / work._SECONDS_BETWEEN_BEATS
    efficiency = float(seconds.sum()) / (now * fleet.workers)
    return Outcome(
        fleet.workers, fleet.jobs, now / 3600, efficiency, deaths, beats + _QUESTIONS_PER_JOB * fleet.jobs / now
    )


def _life(stream: Stream, worker: int, deaths: int) -> float:
    """Seconds until a worker dies, exponentially distributed."""
    share = float(np.ravel(stream.uniform(worker, deaths, 1)[0])[0])
    return -3600 * MEAN_HOURS_BETWEEN_FAILURES * math.log1p(-share)


def store_rate(clients: int, seconds: float) -> float:
    """Additions that one store answers in a second to so many clients of this machine."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    counts, begin = [0] * clients, threading.Barrier(clients)

    def ask(which: int) -> None:
        mine = distributed.TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)
        begin.wait()
        stop = time.monotonic() + seconds
        while time.monotonic() < stop:
            mine.add(f"beat/{which}", 1)
            counts[which] += 1

    threads = [threading.Thread(target=ask, args=(which,)) for which in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, help="its logs give job times; default: 600 s, 3 %% spread")
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--jobs-per-worker", type=int, nargs="+", default=[2, 10, 50])
    parser.add_argument("--store-seconds", type=float, default=3.0, help="for which a real store is asked")


def run(session: Session, options: argparse.Namespace) -> None:
    for workers in options.workers:
        for per_worker in options.jobs_per_worker:
            for failures in (False, True):
                stream = Stream(workers * 1000 + per_worker, "benchmarks/scheduler")
                seconds = job_seconds(options.run, workers * per_worker, stream)
                found = simulate(Fleet(workers, workers * per_worker, failures=failures), seconds, stream)
                about = {"failures": failures, "job_seconds": round(float(seconds.mean()), 3)}
                session.add("fleet", "simulated", **asdict(found), **about)
                print(
                    f"{workers} workers, {per_worker} jobs each{', failures' * failures}: efficiency "
                    f"{found.efficiency:.3f}, {found.deaths} deaths, {found.store_per_second:.0f} store operations/s",
                    flush=True,
                )
    for clients in (1, 8, 64):
        rate = store_rate(clients, options.store_seconds)
        session.add("store", f"{clients} clients", operations_per_second=round(rate))
        print(f"a store answers {rate:.0f} operations/s to {clients} clients", flush=True)
