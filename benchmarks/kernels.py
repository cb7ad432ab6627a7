"""Every operator beside PyTorch's: milliseconds, GB/s, and the share of a copy's speed measured in the same run.

    python benchmarks/kernels.py --out FILE.jsonl

Variants take turns, inputs rotate beyond the last cache, and on a GPU the host is given a head start, so that kernels
are timed and not their launches. An operator whose tests fail is not reported; --no-gate skips the tests and marks
every line as ungated. GB/s count the bytes that the operation must move, so a variant that moves more shows less.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torch._functorch.config as functorch
from measure import DEVICE, Line, Rotation, Timing, copy_ceiling, interleaved, missing_compiler, write
from operators import OPERATORS, Case
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]


def failure(operator: str) -> str | None:
    """The last line of the operator's tests if they fail, or None."""
    tests = [ROOT / "tests" / f"{name}.py" for name in (f"test_{operator}", f"test_kernel_{operator}")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", *(str(test) for test in tests if test.exists())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return (done.stdout.strip().splitlines() or [done.stderr])[-1] if done.returncode else None


def usable(case: Case, slots: Rotation) -> Iterator[tuple[str, Callable[..., Sequence[Tensor]]]]:
    """The variants that run here; the others are said to be skipped."""
    for name, function in case.variants.items():
        reason = missing_compiler() if name == "compiled" else None
        try:
            if reason is None:
                differentiate(graph(function, next(slots)))
        except Exception as error:  # a peer that PyTorch cannot compile or run must not end the benchmark
            if name == "ours":
                raise
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        if reason is None:
            yield name, function
        else:
            print(f"  {name} skipped: {reason}", flush=True)


def graph(function: Callable[..., Sequence[Tensor]], inputs: list[Tensor]) -> tuple[list[Tensor], ...]:
    """Differentiable outputs, the inputs that need gradients, and gradients of the outputs."""
    outputs = [output for output in function(*inputs) if output.requires_grad]
    return outputs, [x for x in inputs if x.requires_grad], [torch.randn_like(output) for output in outputs]


def differentiate(made: tuple[list[Tensor], ...]) -> None:
    """The backward pass of what `graph` made; it can be repeated."""
    outputs, leaves, gradients = made
    if outputs:
        torch.autograd.grad(outputs, leaves, gradients, retain_graph=True)


def times(case: Case, repeats: int, warmup: int) -> Iterator[tuple[str, int, dict[str, Timing]]]:
    """Forward and backward pass of a case: name, bytes that must be moved, timings."""
    slots = Rotation(case.inputs)
    variants = dict(usable(case, slots))
    measure = partial(interleaved, repeats=repeats, warmup=warmup, head_start_ms=2.0)
    yield (
        "forward",
        case.forward_bytes,
        measure({name: lambda function=function: function(*next(slots)) for name, function in variants.items()}),
    )
    if case.backward_bytes:
        made = {name: [graph(function, inputs) for inputs in slots.copies] for name, function in variants.items()}
        turn = dict.fromkeys(variants, 0)

        def run(name: str) -> None:
            turn[name] = (turn[name] + 1) % len(made[name])
            differentiate(made[name][turn[name]])

        yield "backward", case.backward_bytes, measure({name: partial(run, name) for name in variants})


def report(operator: str, repeats: int, warmup: int, is_gated: bool) -> Iterator[Line]:
    """Lines of an operator."""
    ceiling = copy_ceiling()
    for make in OPERATORS[operator]:
        case = make()
        dtype = str(case.dtype).removeprefix("torch.")
        for which, size, timings in times(case, repeats, warmup):
            for variant, timing in timings.items():
                speed = size / timing.median / 1e6
                print(
                    f"  {case.name:24} {dtype:9} {which:8} {variant:16} {timing.median:9.3f} ms {speed:7.1f} GB/s "
                    f"{100 * speed / ceiling:4.0f} % of a copy",
                    flush=True,
                )
                yield {
                    "benchmark": "kernels",
                    "operator": operator,
                    "case": case.name,
                    "images": case.inputs[0].shape[0],
                    "dtype": dtype,
                    "pass": which,
                    "variant": variant,
                    **timing.line(),
                    "bytes": size,
                    "GB/s": round(speed, 1),
                    "share_of_copy": round(speed / ceiling, 3),
                    "copy_GB/s": round(ceiling, 1),
                    **({} if is_gated else {"ungated": True}),
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, default=list(OPERATORS))
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--no-gate", action="store_true", help="do not run the operators' tests; marks the lines")
    parser.add_argument("--out", type=Path, help="file to which the lines are appended")
    options = parser.parse_args()
    functorch.donated_buffer = False  # lets compiled peers repeat a backward pass
    print(f"a copy moves {copy_ceiling():.0f} GB/s", flush=True)
    for operator in options.operators:
        problem = None if options.no_gate else failure(operator)
        print(operator if problem is None else f"{operator} is not reported: its tests fail ({problem})", flush=True)
        if problem is None:
            for line in report(operator, options.repeats, options.warmup, not options.no_gate):
                write([line], options.out)
            if DEVICE.type == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
