"""The page of where the time of a recover step goes, from the lines that `bench recover --profile` has written."""

from __future__ import annotations

import math

from result_files import Result, markdown, newest, together
from throughput import MISSING, NOT_MEASURED, figure, finished, of


def profile(results: list[Result]) -> str:
    """The page that says where the time of a recover step goes, the longest part first."""

    def key(result: Result) -> tuple[str, ...]:
        return result.device, result["statistics"], result["network"], str(result.shape), result["dtype"]

    found = [result for result in of(results, "recover") if result.get("what") == "profile"]
    used = newest(together(found, key), lambda result: (*key(result), result["variant"]))
    pages = [
        "# Where the time of a recover step goes",
        "Written by `benchmarks/tables.py` from `bench recover --profile`.",
    ]
    for group in dict.fromkeys(key(result) for result in used):
        parts = sorted((r for r in used if key(r) == group), key=lambda result: -result["share_of_step"])
        rows = [
            (
                *(result["variant"], f"{result['median_ms']:.3g}", f"{100 * result['share_of_step']:.1f}"),
                MISSING if result.get("bytes") is None else f"{result['bytes'] / 1e9:.3g}",
                *(figure(result.get("GB/s"), 0), figure(100 * result.get("share_of_copy", math.nan), 0)),
            )
            for result in parts
        ]
        head = ("part", "ms", "% of the step", "GB", "GB/s", "% of a copy")
        device, statistics_, network, shape, dtype = group
        title = f"{statistics_}, {network.split('/')[-1]}, {shape}, {dtype}, {device}"
        pages += [
            f"## {title}",
            f"{parts[0]['step_ms']} ms a step without the profiler.",
            finished(markdown(head, rows), parts),
        ]
    return "\n\n".join(pages if used else [*pages, NOT_MEASURED]) + "\n"
