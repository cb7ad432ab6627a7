"""The tables of speeds and costs in README and docs, from all result lines (results.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pages import markdown
from pandas import DataFrame
from results import newest, sources

MISSING = "–"  # noqa: RUF001
NOT_MEASURED = "Not measured yet: there is no result file."
OURS = ("ours-bf16", "ours-tf32", "ours-fp32", "ours")
OWN_VARIANTS = {"plain", "plain-channels_last", "plain-bf16", "published", "ours-unmatched", "ours-bf16-eager", *OURS}
"""Of the recover step; all others are peers."""
METHODS = {"sre2l": "SRe2L", "gvbsm": "G-VBSM", "edc": "EDC", "rded": "RDED", "mdc": "MDC"}
STEP = ["device", "statistics", "network", "shape"]
Made = tuple[list[Sequence[str]], DataFrame]
"""Rows of a table, and the lines that they are from."""


Making = Callable[[DataFrame], Any]
TABLES: dict[str, tuple[Making, list[str], tuple[str, ...]]] = {}
"""What makes a table's rows, its head, and the benchmarks that it is of; label sources also make their head."""


def made_of(name: str, head: str, *benchmarks: str) -> Callable[[Making], Making]:
    """Puts what follows among the tables."""

    def register(make: Making) -> Making:
        TABLES[name] = make, head.split(" | "), benchmarks
        return make

    return register


def figure(value: float | None, digits: int = 2, form: str = "") -> str:
    """A number as it is shown, or what stands for none; `form` with {} for it."""
    return MISSING if value is None or math.isnan(value) else (form or "{}").format(f"{value:.{digits}f}")


def short(network: str) -> str:
    return network.split("/")[-1]


def by(times: Sequence[Any]) -> str:
    return " x ".join(map(str, times))


def over(times: dict[str, float], one: str | None, other: str | None) -> float:
    """How often one fits into the other; NaN where one is missing."""
    return times[one] / times[other] if one in times and other in times else math.nan


def groups(used: DataFrame, names: list[str], sort: bool = False) -> Iterator[tuple[Any, DataFrame]]:
    """Values of these columns, and their lines by variant."""
    if not used.empty:
        for key, lines in used.groupby(names, sort=sort):
            yield key, lines.set_index("variant", drop=False)


def fastest(times: dict[str, float]) -> str | None:
    """Which of ours takes least."""
    return min((name for name in OURS if name in times), key=times.__getitem__, default=None)


@made_of(
    "recover step",
    "device | statistics | network | images x side x side | published (of plain) | "
    "other peers | ours (of plain) | published / ours",
    "recover",
)
def recover(found: DataFrame) -> Made:
    """Time of a step and its ratio to the unfused step without matching, and how often ours fits into the published."""
    used, rows = newest(found[found["statistics"].notna() & (found["what"] != "profile")], STEP), []
    for (device, statistics, network, shape), lines in groups(used, STEP, sort=True):
        times, plain = lines["median_ms"].to_dict(), lines["ratio_to_plain"].to_dict()
        if "published" in times:
            best, others = fastest(times), [f"{name} {times[name]:.1f} ms" for name in sorted({*times} - OWN_VARIANTS)]
            about = (device, METHODS[statistics], short(network), by((shape[0], *shape[2:])))
            shown = [
                f"{times[name]:.1f} ms ({figure(plain[name])})" if name else MISSING for name in ("published", best)
            ]
            mine = shown[1] + (f", {best}" if best else "")
            rows.append((*about, shown[0], ", ".join(others) or MISSING, mine, figure(over(times, "published", best))))
    return rows, used


@made_of("peers", "device | of | their code | on | theirs | ours | theirs / ours", "peers", "peer-epochs", "train")
def peers(found: DataFrame) -> Made:
    """Of each method or package its own code's time, ours on the same data in the same run, and how often it fits."""
    group, rows = ["device", "benchmark", "what", "network", "shape"], []
    used = newest(found, group)
    used = used[used.groupby(group)["peer"].transform("count") > 0]
    for (device, _, what, network, shape), lines in groups(used, group, sort=True):
        times = lines["median_ms"].to_dict()
        best = fastest(times)
        mine = f"{times[best]:.1f} ms, {best}" if best else MISSING
        for name, theirs in lines[lines["peer"].notna()].iterrows():
            code, on = f"`{theirs['peer']}`: {theirs['runs']}", f"{short(network)}, {by(shape)}"
            ratio = figure(over(times, name, best))
            rows.append((device, METHODS.get(what, name), code, on, f"{times[name]:.1f} ms", mine, ratio))
    return rows, used


@made_of(
    "frozen step",
    "device | network | views x side x side | published | in bf16 | its objective, ours | class means, ours | "
    "published / ours",
    "frozen",
)
def frozen_step(found: DataFrame) -> Made:
    """Time of a step for a frozen backbone, and how often ours of class means fits into the published one."""
    group = ["device", "network", "views", "shape"]
    used, rows = newest(found, group), []
    for (device, network, views, shape), lines in groups(used, group, sort=True):
        times, shown = lines["median_ms"].to_dict(), ["published", "published-bf16"]
        for kind in ("gradient", "means"):
            own = {name: time for name, time in times.items() if name.startswith(kind)}
            shown.append(min(own, key=own.__getitem__, default=kind))
        about = device, short(network), by((int(views) * shape[0], *shape[2:]))
        cells = [figure(times.get(name), 0, "{} ms") for name in shown]
        rows.append((*about, *cells, figure(over(times, "published", shown[-1]))))
    return rows, used


@made_of(
    "traffic",
    "step | GB published | GB ours | launches published | ours | passes a BatchNorm tensor, published | ours",
    "traffic",
    "passes",
)
def traffic(found: DataFrame) -> Made:
    """Bytes, launches and passes of a step, counted."""
    found = found[(found["network"] == "torchvision/resnet18") & (found["size"] == 224)]
    steps = newest(found[found["step"].notna()], ["step"], [])
    passes = newest(found[(found["of"] == "BatchNorm") & (found["layer"] == "all")], ["layer"], [])
    by_name, rows = {line["step"]: line for _, line in steps.iterrows()}, []
    made = passes["passes"].iloc[-1] if len(passes) else {}
    titles = {"plain": "network alone", "sre2l": "SRe2L's statistics", "edc": "EDC's statistics"}
    for name, title in titles.items():
        both = [by_name.get(f"{name} published", by_name.get(name)), by_name.get(f"{name} ours")]
        if both[0] is not None:
            total = [None if step is None else step["gigabytes"]["total"] for step in both]
            launches = [MISSING if step is None else str(step["launches"]["total"]) for step in both]
            over_norms = [None if step is None else made.get(step["step"]) for step in both]
            rows.append((title, *(figure(x, 1) for x in total), *launches, *(figure(x, 1) for x in over_norms)))
    return rows, found.loc[[*steps.index, *passes.index]]


@made_of("kernels", "device | operator | dtype | cases | % of a copy | eager / ours | compiled / ours", "kernels")
def kernels(found: DataFrame) -> Made:
    """Of each operator and pass the medians over its cases: share of a copy, and how often ours fits into a peer."""
    group, rows = ["device", "operator", "dtype", "pass"], []
    used = newest(found, [*group, "case", "variant"], [])
    for (device, operator, dtype, which), lines in groups(used, group):
        times = lines.pivot(index="case", columns="variant", values="median_ms").astype(float)
        ratios = (
            times[name] / times["ours"] if name in times else times["ours"] * math.nan for name in ("eager", "compiled")
        )
        share = 100 * lines.loc[["ours"], "share_of_copy"].median()
        medians = (figure(ratio.median(), 1) for ratio in ratios)
        rows.append((device, f"`{operator}` {which}", dtype, str(len(times)), figure(share, 0), *medians))
    return rows, used


@made_of("loaders", "device | images of | loader | training crops | evaluation crops", "loaders")
def loaders(found: DataFrame) -> Made:
    """Images a second, in brackets the ratio to the library's own pipeline."""
    group = ["device", "data"]
    used, rows = newest(found, group, ["variant", "crops"]), []
    for (device, data, name), lines in groups(used, [*group, "variant"]):
        cells = {
            line["crops"]: f"{line['images_per_s']:.0f}{figure(line['ratio_to_own'], 2, ' ({})').removeprefix(MISSING)}"
            for _, line in lines.iterrows()
        }
        rows.append((device, data, f"`{name}`", *(cells.get(kind, MISSING) for kind in ("train", "evaluate"))))
    return rows, used


@made_of(
    "loader parity",
    "device | loader | images | training crops, mean (largest) | evaluation crops | top-1",
    "loader-parity",
)
def parity(found: DataFrame) -> Made:
    """Mean and largest difference of pixels to Pillow's, and a teacher's top-1 on them."""
    found = found.assign(data=found["data"].str.removeprefix("data/"))
    used = newest(found, ["device", "data", "resize", "variant"], []).sort_values(["device", "data", "resize", "place"])
    rows = [
        (
            *(line["device"], f"`{line['variant']}`", f"{line['images']} of {line['data']}, resize {line['resize']}"),
            *(f"{line[kind]['mean']:.4g} ({line[kind]['largest']})" for kind in ("train", "evaluate")),
            figure(line["top1"], 1),
        )
        for _, line in used.iterrows()
    ]
    return rows, used


@made_of(
    "labels",
    "device | teacher and student | step on the fly / in memory | views, % of an epoch | epoch / FKD files",
    "labels",
)
def labels(found: DataFrame) -> Made:
    """Ratios of what labels and views cost."""
    group, rows = ["device", "network", "size", "batch_size", "precision"], []
    used = newest(found[found["part"] != "extrapolated"], [*group, "part"])
    for (device, network, size, batch, precision), lines in groups(used, group):
        times = dict(zip(lines["part"] + " " + lines["variant"], lines["median_ms"], strict=True))
        about = f"{short(network)}, {size} pixels, batches of {batch}, {precision}"
        step, epoch = over(times, "step on-the-fly", "step in-memory"), over(times, "epoch ours", "epoch published")
        views = figure(100 * over(times, "epoch views", "epoch ours"), 1)
        rows.append((device, about, figure(step), views, figure(epoch)))
    return rows, used


FKD = ("2 K + 25, and 2 kB a file", "6.1 GB")
WEIGHTS = "the teachers' weights (ResNet-18: 45 MB) and their forward pass"
LABEL_SOURCES = {
    "ours": ("`teachers` (default)", "0; about 1 kB for the set, that says how", "0 B", WEIGHTS),
    "stored": ("`stored`, by `relabel --store`", "2 K", "6.0 GB", "nothing"),
    "stored-top-5": ("`stored`, with `--labels.top-k 5`", "22", "66 MB", "nothing"),
    "fkd": ("`stored`, FKD files of SRe2L, CDA, G-VBSM or EDC (`--labels.stored DIR`)", *FKD, "nothing"),
    "hard": ("`hard`", "0", "0 B", "nothing"),
    "published": ("FKD files and JPEG images, read in the published way", *FKD, MISSING),
}
"""Variants of the benchmark's epoch: a source, its bytes a view and of ImageNet at IPC 10, what it needs."""


@made_of("label sources", "", "labels")
def label_sources(found: DataFrame) -> tuple[list[str], list[Sequence[str]], DataFrame]:
    """What each source of labels costs: bytes, which follow from its format, and a student's time, measured."""
    group, titles, columns, shown = ["device", "network", "size", "batch_size", "precision"], [], [], []
    used = newest(found[found["part"] == "epoch"], group)
    for (device, network, size, _, precision), lines in groups(used, group):
        times = (lines["median_ms"] / lines["images"]).to_dict()
        if "stored" in times:
            titles.append(f"1,000 views, {device}, {short(network)}, {size} pixels, {precision}")
            columns.append({name: f"{time:.2f} s ({figure(time / times['ours'])})" for name, time in times.items()})
            shown += lines["file"].tolist()
    rows = [(*about, *(column[name] for column in columns), needs) for name, (*about, needs) in LABEL_SOURCES.items()]
    head = ["`--labels.source`", "bytes a view, K classes", "ImageNet, IPC 10, 300 epochs", *titles, "needs"]
    return head, rows if columns else [], used[used["file"].isin(shown)]


@made_of("train step", "device | teacher and student | loop | dtype | views a second | its time / ours", "train")
def train(found: DataFrame) -> Made:
    """A student's epoch, in views a second, and how often ours fits into each peer's."""
    group, rows = ["device", "network", "shape", "images"], []
    used = newest(found, group)
    for (device, network, shape, _), lines in groups(used, group):
        times = lines["median_ms"].to_dict()
        about = f"{short(network)}, {shape[-1]} pixels, batches of {shape[0]}"
        rows += [
            (device, about, name, line["dtype"], figure(line["views_per_s"], 0), figure(over(times, name, "ours")))
            for name, line in lines.iterrows()
        ]
    return rows, used


@made_of(
    "costs",
    "device | run | s: squeeze + recover + train + evaluate | hours | kB: images + labels + teachers",
    "end-to-end",
)
def costs(found: DataFrame) -> Made:
    """Stages of whole runs."""
    group, rows = ["device", "recipe", "recipe_sha256"], []
    used = newest(found[found["extrapolated"].isna()], group, ["stage"])
    for (device, name, digest), lines in groups(used, group):
        lines = lines.set_index("stage")
        timed = [
            f"{lines.at[s, 'seconds']:.0f}" for s in ("squeeze", "recover", "train", "evaluate") if s in lines.index
        ]
        handed = lines.at["all", "handed_on"] if "all" in lines.index else {}
        kilobytes = [
            f"{handed[key] / 1e3:.0f}" if key in handed else MISSING for key in ("images", "labels", "teachers")
        ]
        hours = f"{lines['device_hours'].sum():.3g} {'CPU' if device.startswith('cpu') else 'GPU'}-hours"
        rows.append((device, f"`{name}` ({digest[:8]})", " + ".join(timed), hours, " + ".join(kilobytes)))
    return rows, used


@made_of(
    "precision",
    "device | run | seeds | loss fp32 | bf16 | apart, seed by seed | top-1 % fp32 | bf16 | apart, seed by seed",
    "precision",
)
def precision(found: DataFrame) -> Made:
    """Losses and scores of runs that differ in precision alone, and by how much they are apart."""
    group, rows = ["device", "what", "ipc", "student", "iterations", "epochs"], []
    used = newest(found, group, ["seed", "variant"])
    for (device, name, ipc, student, iterations, epochs), lines in groups(used, group):
        both = lines.pivot(index="seed", columns="variant", values=["loss", "top1"]).astype(float).dropna()
        cells = []
        for value in ("loss", "top1"):
            low, high = both[value]["bf16"], both[value]["fp32"]
            apart = low - high
            digits = 3 if value == "loss" else 1
            cells += [figure(one.mean(), digits) for one in (high, low)]
            spread = " to ".join(f"{end:+.{digits}f}" for end in (apart.min(), apart.max()))
            cells.append(spread)
        recipe = name.partition("-ipc")[0]
        about = f"`{recipe}`, {ipc} images a class, {iterations} iterations, {short(student)}, {epochs} epochs"
        rows.append((device, about, str(len(both)), *cells))
    return rows, used


@made_of("extrapolated", "device | extrapolated, not run | recover, hours | one student, hours | from", "end-to-end")
def extrapolated(found: DataFrame) -> Made:
    """ImageNet-1k from measured steps."""
    used, rows = newest(found[found["extrapolated"].notna()], ["device", "recipe"], []), []
    for _, line in used.iterrows():
        hours = [line["device_hours"][stage] for stage in ("recover", "train")]
        words = (
            line["known_from"]["recover"]
            if isinstance(line["known_from"], dict)
            else (  # older lines: inputs
                "{recover_step_ms} ms a step of {recover_images}, {jobs} jobs x {iterations} iterations; "
                "{student_step_ms} ms a step of {student_batch}, {epochs} epochs; {size} pixels"
            ).format(**line["inputs"])
        )
        shown = (f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in hours)
        rows.append((line["device"], f"`{line['recipe']}`", *shown, f"{words}, {line['dtype']}"))
    return rows, used


def table(name: str, lines: DataFrame) -> str:
    """A table of that name and where it is from, or that there is nothing."""
    make, head, benchmarks = TABLES[name]
    found = lines[lines["benchmark"].isin(benchmarks)]
    *own_head, rows, used = make(found) if len(found) else ([], found)
    return f"{markdown(own_head[0] if own_head else head, rows)}\n\n{sources(used)}" if rows else NOT_MEASURED
