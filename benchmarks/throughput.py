"""The tables of speeds and costs in README and docs, each a function from all results to Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from result_files import Result, markdown, newest, sources, together

MISSING = "–"  # noqa: RUF001
NOT_MEASURED = "Not measured yet: there is no result file."
OWN_VARIANTS = {"plain", "plain-channels_last", "plain-bf16", "published"} | {
    f"ours-{name}" for name in ("unmatched", "fp32", "tf32", "bf16", "bf16-eager")
}
"""Of the recover step; all others are peers."""
Table = Callable[[list[Result]], str]


def of(results: list[Result], *benchmarks: str) -> list[Result]:
    """Those of some benchmarks."""
    return [result for result in results if result.benchmark in benchmarks]


def figure(value: float | None, digits: int = 2) -> str:
    """A number as it is shown, or what stands for none."""
    return MISSING if value is None or math.isnan(value) else f"{value:.{digits}f}"


def finished(text: str, used: Sequence[Result]) -> str:
    """The table and where it is from, or that there is nothing."""
    return f"{text}\n\n{sources(used)}" if used else NOT_MEASURED


def recover(results: list[Result]) -> str:
    """Time of a step as a ratio to the unfused step without matching, and how often ours fits into the published."""

    def key(result: Result) -> tuple[str, ...]:
        return result.device, result["statistics"], result["network"], str(result.shape)

    found = [
        result for result in of(results, "recover") if "ratio_to_plain" in result.line and result.get("statistics")
    ]
    used = newest(together(found, key), lambda result: (*key(result), result["variant"]))
    groups: dict[tuple[str, ...], dict[str, Result]] = {}
    for result in used:
        groups.setdefault(key(result), {})[result["variant"]] = result
    rows = []
    for (device, statistics_, network, _), variants in sorted(groups.items()):
        if "published" not in variants:
            continue
        ours = [variants[name] for name in ("ours-bf16", "ours-tf32", "ours-fp32") if name in variants]
        shape = " x ".join(str(extent) for k, extent in enumerate(variants["published"].shape) if k != 1)
        best = min(ours, key=lambda result: result["median_ms"], default=None)
        others = [f"{name} {variants[name]['median_ms']:.1f} ms" for name in sorted(variants.keys() - OWN_VARIANTS)]
        title = statistics_.replace("sre2l", "SRe2L").replace("edc", "EDC")
        published, own = variants["published"], MISSING
        if best is not None:
            own = f"{best['median_ms']:.1f} ms ({figure(best['ratio_to_plain'])}), {best['variant']}"
        rows.append(
            (
                *(device, title, network.split("/")[-1], shape),
                f"{published['median_ms']:.1f} ms ({figure(published['ratio_to_plain'])})",
                ", ".join(others) or MISSING,
                own,
                figure(best and published["median_ms"] / best["median_ms"]),
            )
        )
    head = ("device", "statistics", "network", "images x side x side")
    head += ("published (of plain)", "other peers", "ours (of plain)", "published / ours")
    return finished(markdown(head, rows), used)


def traffic(results: list[Result]) -> str:
    """Bytes, launches and passes of a step, counted."""
    mine = [r for r in of(results, "traffic", "passes") if (r["network"], r["size"]) == ("torchvision/resnet18", 224)]
    steps = newest((r for r in mine if r.get("step")), lambda result: result["step"])
    passes = newest((r for r in mine if (r.get("of"), r.get("layer")) == ("BatchNorm", "all")), lambda _: None)
    by_name = {result["step"]: result for result in steps}
    rows = []
    for label, name in (
        ("network alone", "plain"),
        ("SRe2L's statistics, TV and L2", "sre2l"),
        ("EDC's statistics", "edc"),
    ):
        published, ours = (by_name.get(f"{name}{suffix}") for suffix in (" published", " ours"))
        published = published or by_name.get(name)
        if published is None:
            continue
        over = passes[-1]["passes"] if passes else {}
        cells = [published["gigabytes"]["total"], ours and ours["gigabytes"]["total"]]
        rows.append(
            (
                label,
                *(figure(value, 1) for value in cells),
                *(MISSING if step is None else str(step["launches"]["total"]) for step in (published, ours)),
                *(figure(over.get(step["step"]), 1) if step is not None else MISSING for step in (published, ours)),
            )
        )
    head = (
        "step",
        "GB published",
        "GB ours",
        "launches published",
        "ours",
        "passes a BatchNorm tensor, published",
        "ours",
    )
    return finished(markdown(head, rows), [*steps, *passes])


def kernels(results: list[Result]) -> str:
    """Of each operator and pass the medians over its cases: share of a copy, and how often ours fits into a peer."""
    used = newest(
        of(results, "kernels"),
        lambda r: (r.device, r["operator"], r["case"], r["dtype"], r["pass"], r["variant"]),
    )
    groups: dict[tuple[str, str, str, str], dict[str, dict[str, Result]]] = {}
    for result in used:
        cases = groups.setdefault((result.device, result["operator"], result["dtype"], result["pass"]), {})
        cases.setdefault(result["case"], {})[result["variant"]] = result
    rows = []
    for (device, operator, dtype, which), cases in groups.items():
        mine = [case["ours"] for case in cases.values() if "ours" in case]

        def times(peer: str, cases: dict[str, dict[str, Result]] = cases) -> str:
            ratios = [
                c[peer]["median_ms"] / c["ours"]["median_ms"] for c in cases.values() if {peer, "ours"} <= c.keys()
            ]
            return figure(statistics.median(ratios), 1) if ratios else MISSING

        share = 100 * statistics.median(result["share_of_copy"] for result in mine) if mine else None
        rows.append(
            (
                device,
                f"`{operator}` {which}",
                dtype,
                str(len(cases)),
                figure(share, 0),
                times("eager"),
                times("compiled"),
            )
        )
    head = ("device", "operator", "dtype", "cases", "% of a copy", "eager / ours", "compiled / ours")
    return finished(markdown(head, rows), used)


def loaders(results: list[Result]) -> str:
    """Images a second, in brackets the ratio to the library's own pipeline."""

    def key(result: Result) -> tuple[str, str]:
        return result.device, result["data"]

    found = of(results, "loaders")
    used = newest(together(found, key), lambda result: (*key(result), result["variant"], result["crops"]))
    rows = []
    for device, data in dict.fromkeys(key(result) for result in used):
        cells: dict[str, dict[str, str]] = {}
        for result in used:
            if key(result) == (device, data):
                own = result.get("ratio_to_own")
                text = f"{result['images_per_s']:.0f}" + (f" ({own:.2f})" if own is not None else "")
                cells.setdefault(result["variant"], {})[result["crops"]] = text
        rows += [
            (device, data, f"`{name}`", row.get("train", MISSING), row.get("evaluate", MISSING))
            for name, row in cells.items()
        ]
    return finished(markdown(("device", "images of", "loader", "training crops", "evaluation crops"), rows), used)


def parity(results: list[Result]) -> str:
    """Mean and largest difference of pixels to Pillow's, and a teacher's top-1 on them."""

    def key(result: Result) -> tuple[str, str, int]:
        return result.device, result["data"].removeprefix("data/"), result["resize"]

    used = newest(of(results, "loader-parity"), lambda result: (key(result), result["variant"]))
    rows = [
        (
            *(result.device, f"`{result['variant']}`"),
            f"{result['images']} of {key(result)[1]}, resize {result['resize']}",
            *(f"{result[kind]['mean']:.4g} ({result[kind]['largest']})" for kind in ("train", "evaluate")),
            figure(result.get("top1"), 1),
        )
        for result in sorted(used, key=lambda result: (key(result), result.place))
    ]
    head = ("device", "loader", "images", "training crops, mean (largest)", "evaluation crops", "top-1")
    return finished(markdown(head, rows), used)


def labels(results: list[Result]) -> str:
    """Ratios of what labels and views cost."""

    def key(result: Result) -> tuple[str, ...]:
        names = ("network", "size", "batch_size", "precision", "part")
        return result.device, *(str(result[name]) for name in names)

    found = [result for result in of(results, "labels") if result["part"] != "extrapolated"]
    used = newest(together(found, key), lambda result: (*key(result), result["variant"]))
    groups: dict[tuple[str, ...], dict[str, float]] = {}
    for result in used:
        groups.setdefault(key(result)[:-1], {})[f"{result['part']} {result['variant']}"] = result["median_ms"]

    def ratio(found: dict[str, float], one: str, other: str, digits: int = 2, factor: float = 1.0) -> str:
        return figure(factor * found[one] / found[other], digits) if {one, other} <= found.keys() else MISSING

    rows = [
        (
            device,
            f"{network.split('/')[-1]}, {size} pixels, batches of {batch}, {precision}",
            ratio(times, "step on-the-fly", "step in-memory"),
            ratio(times, "epoch views", "epoch ours", 1, 100.0),
            ratio(times, "epoch ours", "epoch published"),
        )
        for (device, network, size, batch, precision), times in groups.items()
    ]
    head = ("device", "teacher and student", "step on the fly / in memory", "views, % of an epoch", "epoch / FKD files")
    return finished(markdown(head, rows), used)


LABEL_SOURCES = (
    (
        *("ours", "`teachers` (default)", "0; about 1 kB for the set, that says how", "0 B"),
        "the teachers' weights (ResNet-18: 45 MB) and their forward pass",
    ),
    ("stored", "`stored`, by `relabel --store`", "2 K", "6.0 GB", "nothing"),
    ("stored-top-5", "`stored`, with `--labels.top-k 5`", "22", "66 MB", "nothing"),
    (
        *("fkd", "`stored`, FKD files of SRe2L, CDA, G-VBSM or EDC (`--labels.stored DIR`)"),
        *("2 K + 25, and 2 kB a file", "6.1 GB", "nothing"),
    ),
    ("hard", "`hard`", "0", "0 B", "nothing"),
    (
        "published",
        "FKD files and JPEG images, read in the published way",
        "2 K + 25, and 2 kB a file",
        "6.1 GB",
        MISSING,
    ),
)
"""Variants of the benchmark's epoch: a source, its bytes a view and of ImageNet at IPC 10, what it needs."""


def label_sources(results: list[Result]) -> str:
    """What each source of labels costs: bytes, which follow from its format, and a student's time, measured."""

    def key(result: Result) -> tuple[str, ...]:
        return result.device, *(str(result[name]) for name in ("network", "size", "batch_size", "precision"))

    found = [result for result in of(results, "labels") if result["part"] == "epoch"]
    used = newest(together(found, key), lambda result: (*key(result), result["variant"]))
    times: dict[tuple[str, ...], dict[str, float]] = {}
    for result in used:
        times.setdefault(key(result), {})[result["variant"]] = result["median_ms"] / result["images"]
    columns = [column for column, mine in times.items() if "stored" in mine]
    rows = [
        (
            *(source, per_view, imagenet),
            *(
                f"{times[column][variant]:.2f} s ({figure(times[column][variant] / times[column]['ours'])})"
                for column in columns
            ),
            needs,
        )
        for variant, source, per_view, imagenet, needs in LABEL_SOURCES
    ]
    titles = (
        f"1,000 views, {device}, {network.split('/')[-1]}, {size} pixels, {precision}"
        for device, network, size, _, precision in columns
    )
    head = ("`--labels.source`", "bytes a view, K classes", "ImageNet, IPC 10, 300 epochs", *titles, "needs")
    return finished(markdown(head, rows), [result for result in used if key(result) in columns])


def train(results: list[Result]) -> str:
    """A student's epoch, in views a second, and how often ours fits into each peer's."""

    def key(result: Result) -> tuple[str, ...]:
        return result.device, result["network"], str(result.shape), str(result["images"])

    used = newest(together(of(results, "train"), key), lambda result: (*key(result), result["variant"]))
    groups: dict[tuple[str, ...], dict[str, Result]] = {}
    for result in used:
        groups.setdefault(key(result), {})[result["variant"]] = result
    rows = []
    for (device, network, _, _), variants in groups.items():
        ours = variants.get("ours")
        for name, result in variants.items():
            about = f"{network.split('/')[-1]}, {result.shape[-1]} pixels, batches of {result.shape[0]}"
            slower = None if ours is None else result["median_ms"] / ours["median_ms"]
            rows.append((device, about, name, result["dtype"], figure(result["views_per_s"], 0), figure(slower)))
    head = ("device", "teacher and student", "loop", "dtype", "views a second", "its time / ours")
    return finished(markdown(head, rows), used)


def costs(results: list[Result]) -> str:
    """Stages of whole runs."""
    found = [result for result in of(results, "end-to-end") if not result.get("extrapolated")]

    def key(result: Result) -> tuple[str, str, str]:
        return result.device, result["recipe"], str(result["recipe_sha256"])

    used = newest(together(found, key), lambda result: (*key(result), result["stage"]))
    groups: dict[tuple[str, str, str], dict[str, Result]] = {}
    for result in used:
        groups.setdefault(key(result), {})[result["stage"]] = result
    rows = []
    for (device, name, digest), stages in groups.items():
        timed = [stages[stage] for stage in ("squeeze", "recover", "train", "evaluate") if stage in stages]
        whole = stages.get("all")
        handed = whole["handed_on"] if whole is not None else {}
        kilobytes = [
            f"{handed[key] / 1e3:.0f}" if key in handed else MISSING for key in ("images", "labels", "teachers")
        ]
        hours = sum(result["device_hours"] for result in stages.values() if result["stage"] != "all")
        unit = "CPU" if device.startswith("cpu") else "GPU"
        rows.append(
            (
                *(device, f"`{name}` ({digest[:8]})", " + ".join(f"{result['seconds']:.0f}" for result in timed)),
                *(f"{hours:.3g} {unit}-hours", " + ".join(kilobytes)),
            )
        )
    head = ("device", "run", "s: squeeze + recover + train + evaluate", "hours", "kB: images + labels + teachers")
    return finished(markdown(head, rows), used)


def three_digits(value: float) -> str:
    """Rounded to three digits, and from a thousand on to whole numbers."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def extrapolated(results: list[Result]) -> str:
    """ImageNet-1k from measured steps."""
    found = [result for result in of(results, "end-to-end") if result.get("extrapolated")]
    used = newest(found, lambda result: (result.device, result["recipe"]))
    rows = []
    for result in used:
        inputs, hours = result["inputs"], result["device_hours"]
        rows.append(
            (
                *(result.device, f"`{result['recipe']}`"),
                *(three_digits(hours["recover"]), three_digits(hours["train"])),
                f"{inputs['recover_step_ms']} ms a step of {inputs['recover_images']}, {inputs['jobs']} jobs x "
                f"{inputs['iterations']} iterations; {inputs['student_step_ms']} ms a step of "
                f"{inputs['student_batch']}, {inputs['epochs']} epochs; {inputs['size']} pixels, {result['dtype']}",
            )
        )
    head = ("device", "extrapolated, not run", "recover, hours", "one student, hours", "from")
    return finished(markdown(head, rows), used)


TABLES: dict[str, Table] = {
    "loaders": loaders,
    "loader parity": parity,
    "label sources": label_sources,
    "labels": labels,
    "traffic": traffic,
    "recover step": recover,
    "train step": train,
    "kernels": kernels,
    "costs": costs,
    "extrapolated": extrapolated,
}
