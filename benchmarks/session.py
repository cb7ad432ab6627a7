"""One benchmark while it runs: its lines, in the one format that all benchmarks have, and what it left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from measure import Line, Timing, copy_ceiling, write

Shapes = Sequence[Sequence[int]]
Step = Callable[[], object]


@dataclass
class Session:
    """Writes lines to `out` as they are known, and says at the end what was skipped and why.

    A line: benchmark, what (the thing that was measured), variant (ours, or which peer), shapes and dtype of what it
    works on; median_ms and quartiles_ms where it was timed; bytes that it must move, GB/s of them and their share of a
    copy's speed on the same device, where bytes are known; whatever else `more` holds; the environment (device, driver,
    versions, commit, date); quick, ungated and failing (which test) if they are so. A skipped variant is a line with
    `skipped`, the reason.
    """

    name: str
    out: Path | None = None
    is_quick: bool = False
    is_gated: bool = True
    skipped: list[tuple[str, str]] = field(default_factory=list)
    refused: bool = False
    """Whether tests of something fail."""
    failing: str | None = None
    """What fails of the tests of what is measured now: a mark on its lines, which no table shows."""
    num_lines: int = 0

    def add(
        self,
        what: str,
        variant: str,
        timing: Timing | None = None,
        *,
        shapes: Shapes = (),
        dtype: str | None = None,
        num_bytes: int | None = None,
        **more: Any,
    ) -> Line:
        """Writes a line and returns it."""
        line: Line = {"benchmark": self.name, "what": what, "variant": variant}
        line |= {"shapes": [list(shape) for shape in shapes], "dtype": dtype}
        line |= timing.line() if timing is not None else {}
        if num_bytes is not None:
            line["bytes"] = num_bytes
        if timing is not None and num_bytes is not None:
            speed, ceiling = num_bytes / timing.median / 1e6, copy_ceiling()
            line |= {
                "GB/s": round(speed, 1),
                "share_of_copy": round(speed / ceiling, 3),
                "copy_GB/s": round(ceiling, 1),
            }
        return self._write(line | more)

    def skip(self, what: str, reason: str) -> None:
        """Says that `what` (a variant, a part, a peer) is absent, and writes it down."""
        print(f"  {what} skipped: {reason}", flush=True)
        self.skipped.append((what, reason))
        self._write({"benchmark": self.name, "what": what, "skipped": reason})

    def attempt(self, what: str, make: Callable[[], Step], is_optional: bool = False) -> Step | None:
        """A variant's step after a first call; it is skipped if it has no room, an optional one whatever it raises."""
        try:
            step = make()
            step()
            return step
        except torch.cuda.OutOfMemoryError:
            self.skip(what, "out of memory")
        except Exception as error:  # whatever a compiler raises must not end the benchmark
            if not is_optional:
                raise
            self.skip(what, f"{type(error).__name__}: {str(error).splitlines()[0]}")
        return None

    def refuse(self, what: str, problem: str) -> None:
        """What is not reported because its tests fail."""
        self.refused = True
        self.skip(what, f"not reported, its tests fail ({problem})")

    def mark(self, what: str, problem: str | None) -> None:
        """Marks the lines from here on, where tests of what they tell fail."""
        self.failing = problem
        if problem is not None:
            self.refused = True
            print(f"  {what}: its tests fail ({problem}); its lines are marked", flush=True)

    def finish(self) -> int:
        """Prints what was skipped; returns the exit status, 1 if tests of something fail."""
        if self.skipped:
            print(f"{self.name} skipped {len(self.skipped)}:")
            for reason in dict.fromkeys(reason for _, reason in self.skipped):
                names = dict.fromkeys(what for what, why in self.skipped if why == reason)
                print(f"  {', '.join(names)}: {reason}")
        else:
            print(f"{self.name} skipped nothing")
        if self.out is not None and self.num_lines:
            print(f"{self.num_lines} lines in {self.out}", flush=True)
        return int(self.refused)

    def _write(self, line: Line) -> Line:
        line |= ({"quick": True} if self.is_quick else {}) | ({} if self.is_gated else {"ungated": True})
        line |= {"failing": self.failing} if self.failing is not None else {}
        write([line], self.out)
        self.num_lines += 1
        return line
