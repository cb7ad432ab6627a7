"""Images a second of recover by several CPU workers, to one; and what images cost that no thread count moves.

Whole commands are run, `fastcondense recover --gpus 0 --workers N`, on digits with a teacher that is there already.
Start-up is not counted: images a second are those between the first job's beginning and the last one's end, as the
workers' logs tell.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from session import Session

ROOT = Path(__file__).resolve().parents[1]
FLAGS = "--squeeze.teachers zoo/resnet18 --squeeze.gate-images 0 --recover.batch-size 5 --device cpu".split()
QUICK = {"images": 4, "iterations": 5, "repeats": 1, "workers": [2]}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, nargs="+", default=[os.cpu_count() or 2])
    parser.add_argument("--images", type=int, default=20, help="of a class: a job makes one of each of five classes")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--size", type=int, default=16, help="side of the images in pixels")
    parser.add_argument("--repeats", type=int, default=3)


def run(session: Session, options: argparse.Namespace) -> None:
    cores = os.cpu_count() or 1
    variants = {
        "1 worker": (["--gpus", "0", "--workers", "1"], 1),
        **{f"{count} workers": (["--gpus", "0", "--workers", str(count)], count) for count in options.workers},
        "reproducible, 1 process": ([], 1),
        f"not reproducible, 1 process of {cores} threads": (["--recover.no-reproducible"], 1),
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as scratch:
        teacher = _teacher(Path(scratch), options.size)
        for repeat in range(options.repeats):
            for name, (more, _) in variants.items():
                out = Path(scratch) / f"{repeat}-{name}"
                flags = (
                    f"--ipc {options.images} --recover.iterations {options.iterations} --recover.batch-size 5".split()
                )
                _recover("recover", out, options.size, ["--squeeze.weights", str(teacher), *flags, *more])
                rates[name].append(images_per_second(out))
    alone = statistics.median(rates["1 worker"])
    for name, (_, workers) in variants.items():
        rate = statistics.median(rates[name])
        shares = {"workers": workers, "per_worker_of_one": round(rate / workers / alone, 3)}
        spread = [round(value, 3) for value in sorted(rates[name])]
        session.add("recover", name, images_per_second=round(rate, 3), all=spread, **shares)
        print(f"{name}: {rate:.2f} images/s, a worker {rate / workers / alone:.2f} of one alone", flush=True)


def images_per_second(out: Path) -> float:
    """Of a run, from its workers' logs on one machine."""
    events = [json.loads(line) for path in out.glob("log*.jsonl") for line in path.read_text().splitlines()]
    jobs = [event for event in events if event["event"] == "job"]
    begin = min(event["time"] for event in events if event["event"] == "working")
    return sum(job["images"] for job in jobs) / (max(job["time"] for job in jobs) - begin)


def _teacher(scratch: Path, size: int) -> Path:
    _recover("squeeze", scratch / "teacher", size, ["--squeeze.epochs", "1"])
    (found,) = (scratch / "teacher").rglob("weights.safetensors")
    return found


def _recover(stage: str, out: Path, size: int, more: list[str]) -> None:
    about = ["--dataset.image-size", str(size), "--dataset.resize", str(size), "--recipe", "sre2l/digits-ipc1"]
    command = [sys.executable, "-m", "fastcondense.cli", stage, *about, *FLAGS, "--out", str(out), *more]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
