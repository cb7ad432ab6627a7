"""The gate of the benchmarks: the tests of what is to be reported are run first, each file once."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from measure import DEVICE

ROOT = Path(__file__).resolve().parents[1]


class Gate:
    """Runs test files, and remembers how they ended; in `record`, if it is given, for other processes too."""

    def __init__(self, root: Path = ROOT, record: Path | None = None):
        self.root, self.record = root, record
        self.known: dict[str, str | None] = {}
        if record is not None and record.exists():
            self.known = json.loads(record.read_text())

    def problem(self, tests: Iterable[str]) -> str | None:
        """Why one of tests/test_NAME.py fails, as pytest puts it, or None if all pass.

        Those that have not run yet run in one process, and one by one only if that fails. Raises ValueError for a file
        that does not exist: no tests is not the same as tests that pass.
        """
        names = list(tests)
        paths = {name: self.root / "tests" / f"test_{name}.py" for name in names}
        for name, path in paths.items():
            if not path.exists():
                raise ValueError(f"the gate needs tests/test_{name}.py, which does not exist")
        new = [name for name in names if name not in self.known]
        if new:
            print(f"tests of {', '.join(new)}", end=" ", flush=True)
            failure = self._run([paths[name] for name in new])
            is_one = failure is None or len(new) == 1
            self.known |= {name: failure if is_one else self._run([paths[name]]) for name in new}
            print("pass" if failure is None else f"FAIL: {failure}", flush=True)
            if self.record is not None:
                self.record.write_text(json.dumps(self.known))
        return next((self.known[name] for name in names if self.known[name] is not None), None)

    def run_all(self, tests: Iterable[str], workers: int, seconds: float) -> bool:
        """Runs test files together in so many processes, and writes down how each has ended; whether all passed.

        Those that have not ended after `seconds` count as failed.
        """
        names = list(tests)
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            paths = [str(self.root / "tests" / f"test_{name}.py") for name in names]
            command = [sys.executable, "-m", "pytest", "-n", str(workers), "-p", "no:cacheprovider"]
            process = subprocess.Popen(
                [*command, f"--junitxml={report}", *paths], cwd=self.root, start_new_session=True
            )
            try:
                process.wait(seconds)
                problem = f"pytest ended with {process.returncode}" if process.returncode not in (0, 1) else None
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                problem = f"not ended after {seconds:.0f} s"
            self.known |= dict.fromkeys(names, problem)
            if problem is None:
                for case in ElementTree.parse(report).iter("testcase"):
                    name = case.get("classname", "").rpartition(".")[2].removeprefix("test_")
                    if case.find("failure") is not None or case.find("error") is not None:
                        self.known[name] = f"FAILED tests/test_{name}.py::{case.get('name')}"
        if self.record is not None:
            self.record.write_text(json.dumps(self.known))
        return all(self.known[name] is None for name in names)

    def _run(self, paths: list[Path]) -> str | None:
        command = [sys.executable, "-m", "pytest", "-x", *map(str, paths)]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True)
        if done.returncode == 0:
            return None
        lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"]
        return next((line for line in lines if line.startswith("FAILED ")), lines[-1])


def operator_tests(*operators: str) -> list[str]:
    """The tests of what runs here: on a GPU those of the Triton kernels, elsewhere those of the numba loops."""
    return [f"{'kernel_' * (DEVICE.type == 'cuda')}{operator}" for operator in operators]


def main() -> int:
    """Runs the tests behind several benchmarks at once: ``gate.py --record FILE --seconds 75 recover train``."""
    from runner import BENCHMARKS, STEP_OPERATORS, VIEW_OPERATORS, gate_tests

    parser = argparse.ArgumentParser("gate.py")
    parser.add_argument("benchmarks", nargs="*")
    parser.add_argument("--more", nargs="*", default=[], help="tests that are run with them")
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=75.0)
    options = parser.parse_args()
    tests = [name for benchmark in options.benchmarks for name in gate_tests(BENCHMARKS[benchmark])]
    if "kernels" in options.benchmarks:
        tests += operator_tests(*STEP_OPERATORS, *VIEW_OPERATORS)
    names = list(dict.fromkeys([*options.more, *tests]))
    return int(not Gate(record=options.record).run_all(names, options.workers, options.seconds))


if __name__ == "__main__":
    sys.exit(main())
