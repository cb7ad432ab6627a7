"""The table of published code beside ours, from result files of `bench peers` and `bench peer-epochs`."""

from __future__ import annotations

from result_files import Result, markdown, newest, together
from throughput import MISSING, Table, figure, finished, of

OURS = ("ours-bf16", "ours-tf32", "ours-fp32", "ours")
TITLES = {"sre2l": "SRe2L", "gvbsm": "G-VBSM", "edc": "EDC", "rded": "RDED", "mdc": "MDC"}


def peers(results: list[Result]) -> str:
    """Of each method or package its own code's time, ours on the same data in the same run, and how often it fits."""

    def key(result: Result) -> tuple[str, ...]:
        return result.device, result.benchmark, result["what"], result["network"], str(result.shape)

    used = newest(together(of(results, "peers", "peer-epochs"), key), lambda result: (*key(result), result["variant"]))
    groups: dict[tuple[str, ...], dict[str, Result]] = {}
    for result in used:
        groups.setdefault(key(result), {})[result["variant"]] = result
    rows = []
    for (device, _, _, network, _), variants in sorted(groups.items()):
        best = min((variants[name] for name in OURS if name in variants), key=lambda r: r["median_ms"], default=None)
        for theirs in (result for result in variants.values() if result.get("peer")):
            own = f"{best['median_ms']:.1f} ms, {best['variant']}" if best else MISSING
            rows.append(
                (
                    device,
                    TITLES.get(theirs["what"], theirs["variant"]),
                    f"`{theirs['peer']}`: {theirs['runs']}",
                    f"{network.split('/')[-1]}, {' x '.join(str(extent) for extent in theirs.shape)}",
                    f"{theirs['median_ms']:.1f} ms",
                    own,
                    figure(best and theirs["median_ms"] / best["median_ms"]),
                )
            )
    head = ("device", "of", "their code", "on", "theirs", "ours", "theirs / ours")
    return finished(markdown(head, rows), used)


PEER_TABLES: dict[str, Table] = {"peers": peers}
