"""The gate of the benchmarks: the tests of what is to be reported are run first, each file once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

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

    def _run(self, paths: list[Path]) -> str | None:
        command = [sys.executable, "-m", "pytest", "-x", *map(str, paths)]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True)
        if done.returncode == 0:
            return None
        lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"]
        return next((line for line in lines if line.startswith("FAILED ")), lines[-1])


def operator_tests(*operators: str) -> list[str]:
    """The tests of what runs here: on a GPU those of the Triton kernels too, elsewhere those of the numba loops."""
    kinds = ("", "kernel_") if DEVICE.type == "cuda" else ("",)
    return [f"{kind}{operator}" for operator in operators for kind in kinds]
