"""Every operator beside PyTorch's: milliseconds, GB/s, and the share of a copy's speed measured in the same run.

    fastcondense bench kernels --operators crop pixel_adam

Variants take turns, inputs rotate beyond the last cache, and on a GPU the host is given a head start, so that kernels
are timed and not their launches. An operator whose tests fail is not reported. GB/s count the bytes that the
operation must move, so a variant that moves more shows less.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch._functorch.config as functorch
from gate import operator_tests
from measure import DEVICE, Rotation, Timing, copy_ceiling, interleaved, missing_compiler
from operators import OPERATORS, Case
from session import Session
from torch import Tensor

QUICK = {"repeats": 3, "warmup": 1, "cases": 1}


def usable(case: Case, slots: Rotation, session: Session) -> Iterator[tuple[str, Callable[..., Sequence[Tensor]]]]:
    """The variants that run here; the others are said to be skipped."""
    for name, function in case.variants.items():
        reason = ("not in a quick run" if session.is_quick else missing_compiler()) if name == "compiled" else None
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
            session.skip(f"{case.name} {name}", reason)


def graph(function: Callable[..., Sequence[Tensor]], inputs: list[Tensor]) -> tuple[list[Tensor], ...]:
    """Differentiable outputs, the inputs that need gradients, and gradients of the outputs."""
    outputs = [output for output in function(*inputs) if output.requires_grad]
    return outputs, [x for x in inputs if x.requires_grad], [torch.randn_like(output) for output in outputs]


def differentiate(made: tuple[list[Tensor], ...]) -> None:
    """The backward pass of what `graph` made; it can be repeated."""
    outputs, leaves, gradients = made
    if outputs:
        torch.autograd.grad(outputs, leaves, gradients, retain_graph=True)


def times(case: Case, repeats: int, warmup: int, session: Session) -> Iterator[tuple[str, int, dict[str, Timing]]]:
    """Forward and backward pass of a case: name, bytes that must be moved, timings."""
    slots = Rotation(case.inputs)
    variants = dict(usable(case, slots, session))
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


def report(operator: str, options: argparse.Namespace, session: Session) -> None:
    """Lines of an operator."""
    makers = OPERATORS[operator]
    for make in makers[: options.cases]:
        case = make()
        dtype = str(case.dtype).removeprefix("torch.")
        if options.variants:
            case = replace(
                case, variants={name: case.variants[name] for name in options.variants if name in case.variants}
            )
        for which, size, timings in times(case, options.repeats, options.warmup, session):
            for variant, timing in timings.items():
                line = session.add(
                    f"{operator} {which}",
                    variant,
                    timing,
                    shapes=[x.shape for x in case.inputs],
                    dtype=dtype,
                    num_bytes=size,
                    **{"operator": operator, "case": case.name, "pass": which, "images": case.inputs[0].shape[0]},
                )
                print(
                    f"  {case.name:24} {dtype:9} {which:8} {variant:16} {timing.median:9.3f} ms {line['GB/s']:7.1f} "
                    f"GB/s {100 * line['share_of_copy']:4.0f} % of a copy",
                    flush=True,
                )
    if options.cases is not None and len(makers) > options.cases:
        session.skip(operator, f"the other {len(makers) - options.cases} of {len(makers)} cases (--cases)")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, default=list(OPERATORS))
    parser.add_argument("--cases", type=int, help="the first so many cases of an operator; default: all")
    parser.add_argument("--variants", nargs="+", help="of ours, eager, compiled and the others; default: all")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)


def run(session: Session, options: argparse.Namespace) -> None:
    functorch.donated_buffer = False  # lets compiled peers repeat a backward pass
    print(f"a copy moves {copy_ceiling():.0f} GB/s", flush=True)
    if options.gate:  # all at once, which is quicker if all pass
        options.gate.problem(operator_tests(*options.operators))
    for operator in options.operators:
        problem = options.gate.problem(operator_tests(operator)) if options.gate else None
        session.mark(operator, problem)
        print(operator, flush=True)
        report(operator, options, session)
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
