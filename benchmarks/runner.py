"""The runner of all benchmarks: `fastcondense bench NAME [--quick] [--out FILE] [--no-gate] [options of NAME]`.

    fastcondense bench recover --statistics edc          # one of them; --help lists its own options
    fastcondense bench all --quick                       # the main ones one after another, 30 minutes at most

Results are JSON lines (session.py) in benchmarks/results/<device>/<date>-<commit>.jsonl, or in --out; --quick, small
shapes and few repeats, writes only where --out says, and marks its lines: they show that everything runs. The tests of
what is measured are run first, and what fails them is not reported; --no-gate skips them and marks the lines.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gate import Gate, operator_tests
from measure import DEVICE, environment, folder_name
from session import Session

RESULTS = Path(__file__).resolve().parent / "results"
STEP_OPERATORS = ("frozen_batch_norm", "frozen_batch_norm_pool", "feature_maps", "crop", "pixel_adam")
VIEW_OPERATORS = ("replay_crop", "soft_label")


@dataclass(frozen=True)
class Benchmark:
    """A module with `add_options(parser)`, `run(session, options)`, and QUICK, the options that make it short.

    tests: what must pass before anything is reported; kernels asks for each operator's by itself.
    """

    module: str
    summary: str
    tests: tuple[str, ...] = ()


BENCHMARKS = {
    "kernels": Benchmark("kernels", "every operator beside PyTorch's"),
    "loaders": Benchmark("loaders", "real images a second: ours, torchvision, DALI, FFCV", ("folder_loader",)),
    "recover": Benchmark(
        "recover_step", "a recover step: ours, as published, compiled; --profile", ("matching", *STEP_OPERATORS)
    ),
    "labels": Benchmark("labels", "labels on the fly, in memory, and stored", ("labels", "views", *VIEW_OPERATORS)),
    "train": Benchmark(
        "train",
        "a student's epoch: ours, a DataLoader's, other packages'",
        ("peer_packages", "train_step", "labels", "views", *VIEW_OPERATORS),
    ),
    "peers": Benchmark(
        "peer_steps",
        "a step of the published code of five methods and ours",
        ("peers", "peer_isolation", "matching", *STEP_OPERATORS),
    ),
    "frozen": Benchmark(
        "frozen_step", "a step for a frozen backbone: as published, and ours", ("means", "class_directions", "crop")
    ),
    "end-to-end": Benchmark("end_to_end", "stages of whole runs, and what ImageNet-1k would take"),
    "precision": Benchmark("precision", "losses and scores of whole runs in bf16 beside fp32", ("precision",)),
    "traffic": Benchmark("traffic", "bytes and launches of a recover step, counted"),
    "loader-parity": Benchmark("loader_parity", "how far the loaders' pixels are apart"),
    "at-scale": Benchmark("at_scale", "every stage at ImageNet's shape: seconds and memory", ("work",)),
    "scaling": Benchmark("scaling", "recover by several CPU workers, and what reproducible images cost", ("work",)),
}
MAIN = ("kernels", "recover", "peers", "train", "labels", "loaders", "end-to-end", "traffic")
"""What `all` runs, the most telling first."""
MINUTES = 30.0
LARGEST_SHARE = 0.6
"""Of the time that is left, what one benchmark of `all` may take."""


def gate_tests(benchmark: Benchmark) -> list[str]:
    """Names of the test files behind a benchmark."""
    operators = [name for name in benchmark.tests if name in STEP_OPERATORS + VIEW_OPERATORS]
    return [name for name in benchmark.tests if name not in operators] + operator_tests(*operators)


def default_out() -> Path:
    """The result file of this device, day and commit."""
    found = environment()
    return RESULTS / folder_name() / f"{found['date']}-{found['commit'] or 'unknown'}.jsonl"


def parser_of(name: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    module = importlib.import_module(BENCHMARKS[name].module)
    parser = argparse.ArgumentParser(
        f"fastcondense bench {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="file to which lines are appended; default: see the runner")
    parser.add_argument("--quick", action="store_true", help="small and short: does everything run?")
    parser.add_argument("--no-gate", action="store_true", help="do not run the tests first; marks the lines")
    parser.add_argument("--tested", type=Path, help="JSON file that remembers which tests have passed")
    module.add_options(parser)
    return parser


def run(name: str, arguments: Sequence[str]) -> int:
    """Runs one benchmark; returns the exit status: 1 if what it measures fails its tests."""
    benchmark = BENCHMARKS[name]
    module = importlib.import_module(benchmark.module)
    parser = parser_of(name)
    if "--quick" in arguments:
        parser.set_defaults(**module.QUICK)
    options = parser.parse_args(arguments)
    out = options.out or (None if options.quick else default_out())
    session = Session(name, out, options.quick, not options.no_gate)
    options.gate = None if options.no_gate else Gate(record=options.tested)
    problem = options.gate.problem(gate_tests(benchmark)) if options.gate else None
    session.mark(name, problem)
    module.run(session, options)
    return session.finish()


def run_limited(command: Sequence[str], seconds: float) -> int | None:
    """Runs a command; returns its exit status, or None if it took longer and was ended with all that it has started."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(seconds)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(reason, KeyboardInterrupt):
            raise
        return None


def run_all(arguments: Sequence[str]) -> int:
    """Runs the main benchmarks in processes of their own, within the minutes that are given for all of them."""
    parser = argparse.ArgumentParser("fastcondense bench all")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--only", nargs="+", choices=MAIN, default=list(MAIN))
    parser.add_argument("--data", help="folder of <class>/<image> for loaders")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-gate", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    flags = ["--quick"] * options.quick + ["--no-gate"] * options.no_gate
    flags += ["--out", str(options.out.resolve())] if options.out else []
    end, ended, is_good = time.monotonic() + 60 * options.minutes, {}, True
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            own = ["--data", options.data] if name == "loaders" and options.data else []
            command = [sys.executable, __file__, name, *flags, "--tested", f"{folder}/tested.json", *own]
            print(f"== {name}", flush=True)
            start = time.monotonic()
            # none may use up the others' time
            limit = max(0.1, (end - start) * (1.0 if name == options.only[-1] else LARGEST_SHARE))
            code = run_limited(command, limit)
            is_good &= code == 0
            if code is None:
                ended[name] = "skipped: no time left" if end - start < 1 else f"CUT OFF after {limit:.0f} s"
            else:
                ended[name] = f"{time.monotonic() - start:.0f} s" + (f", FAILED ({code})" if code else "")
    print("== all\n" + "\n".join(f"{name:12} {how}" for name, how in ended.items()))
    return int(not is_good)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        names = "\n".join(f"  {name:18}{benchmark.summary}" for name, benchmark in BENCHMARKS.items())
        print(f"{__doc__}\n{names}\n  {'all':18}{', '.join(MAIN)}\n\non {DEVICE.type}; default --out: {default_out()}")
        return 0
    name, *rest = arguments
    name = name.replace("_", "-").replace("recover-step", "recover")
    if name != "all" and name not in BENCHMARKS:
        near = difflib.get_close_matches(name, [*BENCHMARKS, "all"], 1, 0.0)[0]
        sys.stderr.write(f"fastcondense: there is no benchmark {name!r}; the nearest is {near!r}\n")
        return 1
    try:
        return run_all(rest) if name == "all" else run(name, rest)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"fastcondense: {' '.join(str(error).split())}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
