"""Kills a run of several workers at many random moments, and compares its images with those of an undisturbed one.

usage: python scripts/fault_campaign.py [--kills 50] [--log FILE]

Each round starts `recover --gpus 0` in the folder that the last one left, with 1, 2 or 3 workers, and every third time
another process that helps. It is disturbed after random times: SIGKILL to a worker, also just when it writes, or
SIGSTOP for longer than the others have patience, after which the round goes on; SIGKILL to the launcher or to all at
once, or SIGTERM to the launcher, which end it. When all images are there they must have the bits of the undisturbed
run; then the folder is emptied and the next set begins.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[1]
FLAGS = (
    "--recipe sre2l/digits-ipc6 --squeeze.teachers zoo/convnet3_w32 --squeeze.epochs 2 --recover.statistics bn conv "
    "--recover.batch-size 5 --recover.iterations 300 --device cpu"
).split()
KINDS = ("worker", "mid-write", "frozen", "launcher", "all", "SIGTERM")
ENDS = KINDS[3:]
PATIENCE = 3.0


def command(out: Path, workers: int) -> list[str]:
    launch = ["--gpus", "0", "--workers", str(workers), "--restarts", "100"] if workers else []
    return [sys.executable, "-m", "fastcondense.cli", "recover", *FLAGS, "--out", str(out), *launch]


def shards(out: Path) -> dict[str, bytes]:
    return {
        path.name: b"".join(tensor.tobytes() for _, tensor in sorted(load_file(path).items()))
        for path in sorted((out / "condensed").glob("shard-*.safetensors"))
    }


def children(launcher: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True).stdout
    return [int(line) for line in found.split()]


def kill(process: int, number: int) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        pass


def start(out: Path, workers: int) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FASTCONDENSE_PATIENCE": str(PATIENCE)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command(out, workers), cwd=ROOT, env=environment, **pipes)


def disturb(kind: str, launcher: subprocess.Popen[str], helper: subprocess.Popen[str] | None, out: Path) -> None:
    """Does to a launch what `kind` says."""
    workers = children(launcher.pid)
    if kind == "mid-write":
        until = time.monotonic() + 10
        while not list(out.rglob(".*.tmp")) and time.monotonic() < until and launcher.poll() is None:
            time.sleep(0.0005)
    if kind == "SIGTERM":
        launcher.send_signal(signal.SIGTERM)
    if kind in ("launcher", "all"):
        launcher.kill()
    if kind == "all" and helper is not None:
        helper.kill()
    if kind == "frozen":
        for number, pause in ((signal.SIGSTOP, 2 * PATIENCE), (signal.SIGCONT, 0)):
            for worker in workers[-1:]:
                kill(worker, number)
            time.sleep(pause)
    if kind in ("worker", "mid-write", "all"):
        for worker in workers if kind == "all" else workers[-1:]:
            kill(worker, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="JSON lines are written to this file")
    options = parser.parse_args()
    generator, lines = np.random.default_rng(options.seed), []
    with tempfile.TemporaryDirectory() as scratch:
        whole, out = Path(scratch) / "whole", Path(scratch) / "run"
        alone = start(whole, 0)
        print(alone.communicate()[0])
        wanted, kills, sets = shards(whole), 0, 0
        while kills < options.kills or not sets:
            workers, is_ended, is_killed = int(generator.integers(1, 4)), False, False
            launcher = start(out, workers)
            helper = start(out, 0) if generator.integers(3) == 0 else None
            while not is_ended and kills < options.kills:
                kind, pause = KINDS[int(generator.integers(len(KINDS)))], float(generator.uniform(1, 10))
                try:
                    launcher.wait(pause)
                    break
                except subprocess.TimeoutExpired:
                    disturb(kind, launcher, helper, out)
                kills, is_ended, is_killed = kills + 1, kind in ENDS, kind == "all"
                line = {"kill": kills, "kind": kind, "workers": workers, "after_s": round(pause, 2)}
                line["helper"] = helper is not None
                lines.append(line | {"jobs": len(shards(out))})
                print(json.dumps(lines[-1]), flush=True)
            said = launcher.communicate(timeout=600)[0]
            if launcher.returncode != 0 and not is_ended:
                print(said, file=sys.stderr)
                return 1
            if helper is not None:
                said = helper.communicate(timeout=600)[0]
                if helper.returncode != 0 and not is_killed:
                    print(said, file=sys.stderr)
                    return 1
            if len(shards(out)) == len(wanted):
                if shards(out) != wanted:
                    print(f"after kill {kills} the images differ", file=sys.stderr)
                    return 1
                sets += 1
                lines.append({"set": sets, "after_kills": kills, "jobs": len(wanted), "equal": "to the bit"})
                print(json.dumps(lines[-1]), flush=True)
                shutil.rmtree(out)
    counts = Counter(line["kind"] for line in lines if "kind" in line)
    lines.append(
        {"kills": kills, "kinds": dict(counts), "sets": sets, "jobs_a_set": len(wanted), "equal": "to the bit"}
    )
    print(json.dumps(lines[-1]))
    if options.log:
        options.log.parent.mkdir(parents=True, exist_ok=True)
        options.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
