"""Where the time of one recover step goes, by operator: a Chrome trace, and a table with bytes and shares of a copy.

The step runs eagerly, without a CUDA graph, which replays the same kernels. An operator's time is its own and that of
what it calls, as torch.profiler saw it on the device (on a CPU: in the thread); what belongs to no operator is the
host's.
Bytes are counted by `meter` as the GPU's kernels move them, and so are lower bounds for the CPU's loops.
"""

from __future__ import annotations

import argparse
import bisect
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from measure import DEVICE, Timing, copy_ceiling, interleaved
from meter import Record
from peers import Objective
from session import Session
from steps import OurStep, our_step
from torch import nn
from torch._C._profiler import _RecordFunctionFast
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function
from traffic import ours

from fastcondense.recipe.shared import Precision
from fastcondense.recover import by_statistics

HOST = "host, between operators"
REST = "other operators of PyTorch"
OPERATORS = {  # of an event's name without what autograd adds: our operators, then PyTorch's
    r"Crop": "crop",
    r"FrozenBatchNorm": "frozen batch norm",
    r"FrozenBatchNormPool": "frozen batch norm and pool",
    r"FeatureMaps|_PatchMoments": "statistics of maps",
    r"_Distances": "distances",
    r"pixel_adam": "Adam and clip",
    r"(aten::)?(mkldnn_|cudnn_|_|Packed)?[Cc]onvolution(_backward|0)?": "convolutions",
    r"(aten::)?(conv2d|thnn_conv2d|_slow_conv2d_(forward|backward))": "convolutions",
    r"(aten::)?([Aa]ddmm|linear|mm|[Mm]m)0?": "linear layer",
    r"(aten::)?(cross_entropy_loss|nll_loss.*|NllLoss|_?log_softmax.*|LogSoftmax)0?": "cross-entropy",
    r"(aten::)?(max_pool2d.*|adaptive_avg_pool2d.*|[Mm]ean|MaxPool2DWithIndices|AdaptiveAvgPool2D)(_backward)?[01]?": (
        "pooling"
    ),
    r"step": HOST,
}
KERNELS = {  # of a metered launch's name
    r"crop": "crop",
    r"(frozen_batch_norm|channel_moments)": "frozen batch norm",
    r"frozen_batch_norm_pool": "frozen batch norm and pool",
    r"(feature_maps|filter)": "statistics of maps",
    r"pixel_adam": "Adam and clip",
    r"(mkldnn_|cudnn_|_)?convolution(_backward)?": "convolutions",
    r"addmm|mm": "linear layer",
    r".*(max_pool2d|adaptive_avg_pool2d).*|mean": "pooling",
    r"_?log_softmax.*|nll_loss.*": "cross-entropy",
}
WHOLE = {"Adam and clip", HOST, REST, "distances", "cross-entropy"}
"""Parts that are not split into forward and backward."""


def part(name: str) -> str | None:
    """The operator and pass that an event of torch.profiler belongs to, or None if its name does not tell."""
    bare = name.removeprefix("autograd::engine::evaluate_function: ")
    match = re.fullmatch(r"(.*?)Backward(\d*)", bare)
    bare, is_backward = (match[1], True) if match else (bare, "_backward" in bare)
    for pattern, operator in OPERATORS.items():
        if re.fullmatch(pattern, bare):
            return operator if operator in WHOLE else f"{operator}, {'backward' if is_backward else 'forward'}"
    return None


def part_of_launch(name: str) -> str:
    """The same of a launch that `meter` has counted."""
    stem, _, kernel = name.partition(".")
    for pattern, operator in KERNELS.items():
        if re.fullmatch(pattern, stem):
            if operator in WHOLE:
                return operator
            # shares of pixels that no window shows belong to the crop's backward
            is_backward = "backward" in (kernel or stem) or kernel == "share_kernel"
            return f"{operator}, {'backward' if is_backward else 'forward'}"
    return REST


def milliseconds(events: Iterable[Any], device: torch.device) -> dict[str, list[float]]:
    """Of each part in each step, from the profiler's tree of events, steps being those of the name "step".

    On a GPU an event's own time is that of the kernels that it launched; kernels that no event owns are the rest's, and
    the host's time is that in which no kernel ran.
    """
    events, is_gpu = list(events), device.type == "cuda"
    on_host = [event for event in events if event.device_type == DeviceType.CPU]
    steps = sorted((event.time_range for event in on_host if event.name == "step"), key=lambda span: span.start)
    starts = [span.start for span in steps]
    found: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(steps))
    for event in on_host:
        number = bisect.bisect_right(starts, event.time_range.start) - 1
        if number < 0 or (is_gpu and event.name == "step"):
            continue
        own, above = sum(k.duration for k in event.kernels) if is_gpu else event.self_cpu_time_total, event
        while above is not None and (name := part(above.name)) in (None, HOST if is_gpu else None):
            above = above.cpu_parent
        found[name if above is not None else REST][number] += own / 1e3
    kernels = [e for e in events if is_gpu and e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    for number, span in enumerate(steps if is_gpu else ()):
        inside = [kernel.time_range for kernel in kernels if span.start <= kernel.time_range.start < span.end]
        busy = sum(kernel.end - kernel.start for kernel in inside) / 1e3
        found[REST][number] += max(0.0, busy - sum(times[number] for times in list(found.values())))
        found[HOST][number] += max(0.0, (span.end - span.start) / 1e3 - busy)
    return {name: times for name, times in found.items() if sum(times) > 0}


def metered_bytes(small: Iterable[Record], large: Iterable[Record], num_images: int) -> dict[str, int]:
    """Bytes of each part with `num_images` images, from steps with 2 and with 4."""

    def by_part(records: Iterable[Record]) -> dict[str, int]:
        total: dict[str, int] = defaultdict(int)
        for record in records:
            total[part_of_launch(record.name)] += record.read + record.written
        return total

    two, four = by_part(small), by_part(large)
    return {name: round(size + (size - two[name]) / 2 * (num_images - 4)) for name, size in four.items()}


def recorded(step: OurStep, repeats: int, trace: Path) -> list[Any]:
    """Runs the step under torch.profiler, writes the Chrome trace and returns the events."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (DEVICE.type == "cuda")
    adam = by_statistics.pixel_adam

    def marked_adam(*arguments: Any, **options: Any) -> Any:
        with _RecordFunctionFast("pixel_adam"):  # which kernels are told to belong to, unlike record_function
            return adam(*arguments, **options)

    with (
        mock.patch.object(by_statistics, "pixel_adam", marked_adam),
        torch.profiler.profile(activities=activities) as made,
    ):
        for _ in range(repeats):
            with record_function("step"):
                step()
                if DEVICE.type == "cuda":
                    torch.cuda.synchronize()
    trace.parent.mkdir(parents=True, exist_ok=True)
    made.export_chrome_trace(str(trace))
    return list(made.events())


def profile(
    session: Session,
    net: nn.Module,
    objective: Objective,
    precision: Precision,
    trace: Path,
    options: argparse.Namespace,
) -> None:
    """Times our step with and without the profiler, and prints and stores the table."""
    step = our_step(net, options.images, options.size, objective, DEVICE, precision)
    whole = interleaved({"eager": step}, max(2, options.repeats), options.warmup)["eager"]
    parts = milliseconds(recorded(step, max(2, options.repeats), trace), DEVICE)
    counts = [ours(options.network, objective, options.size, n, precision).records for n in (2, 4)]
    moved = metered_bytes(*counts, options.images)
    total = sum(map(sum, parts.values())) / max(2, options.repeats)
    print(f"a step takes {whole.median:.2f} ms without the profiler, {total:.2f} ms of operators with it")
    print(f"a copy moves {copy_ceiling():.0f} GB/s; trace: {trace}")
    print(f"{'part':40} {'ms':>9} {'share':>7} {'GB':>8} {'GB/s':>8} {'of a copy':>10}")
    shared = {
        "shapes": [(options.images, 3, options.size, options.size)],
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}.get(precision, precision),
        "statistics": objective.statistics,
        "network": options.network,
    }
    for name, times in sorted(parts.items(), key=lambda item: -sum(item[1])):
        timing, size = Timing.of(times), moved.get(name) if name != HOST else None
        line = session.add(
            "profile",
            name,
            timing,
            num_bytes=size,
            share_of_step=round(sum(times) / len(times) / total, 4),
            step_ms=whole.line()["median_ms"],
            **shared,
        )
        known = ("GB/s" in line) and f"{size / 1e9:8.3f} {line['GB/s']:8.1f} {100 * line['share_of_copy']:8.0f} %"
        print(f"{name:40} {timing.median:9.3f} {100 * line['share_of_step']:5.1f} % {known or ''}")
