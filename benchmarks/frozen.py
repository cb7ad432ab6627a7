"""The table of linear probes on frozen backbones in docs: condensed beside real images, over runs of other seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from accuracy import score
from add_run import Line
from pages import markdown

from fastcondense.report.report import margin_in_words

ARMS = {"random_hard": "random real", "nearest": "nearest", "aligned": "aligned", "full": "all real"}
DATA = {"cifar10": "CIFAR-10, 112 px", "imagenette": "ten ImageNet classes, 224 px", "digits": "digits"}
NETWORKS = {"tests/architectures.py:fd_mobilenet": "FD-MobileNet", "timm/tf_efficientnet_lite0": "EfficientNet-Lite0"}


def table(lines: Iterable[Line]) -> str:
    """A row for each recipe and target, backbones condensed for, images a class, probed backbone and view of the probe.

    Runs of a row differ by their seed.

    Top-1 in % of the last epoch, mean and deviation over runs, each the mean of its students; below each baseline the
    condensed images minus it, paired by run, with the 95 % interval.
    """
    groups: dict[tuple[str | int, ...], list[Line]] = {}
    for line in filter(is_probe, lines):
        groups.setdefault(_group(line), []).append(line)
    rows = []
    for (data, recipe, made_for, ipc, probed, crops, reduced), runs in sorted(groups.items()):
        runs = sorted(runs, key=lambda line: line["seed"])
        own = [line["top1_last"]["mean"] for line in runs]
        cells = []
        for arm in ARMS:
            of = [line["baselines"][arm]["top1_last"]["mean"] for line in runs if arm in line["baselines"]]
            cells.append(f"{_score(of)}; {margin_in_words(own, of)}" if len(of) == len(own) else "not run")
        about = f"{recipe}, {made_for}", str(ipc), probed, crops, str(len(runs))
        rows.append((f"{data}, {reduced}" if reduced else str(data), *about, f"**{_score(own)}**", *cells))
    head = ["data", "condensed by, for", "images a class", "probed on", "probe's crops", "runs", "condensed"]
    head += ARMS.values()
    return markdown(head, rows) if rows else ""


def is_probe(line: Line) -> bool:
    """Whether its students are linear layers on a frozen backbone, which no table of trained networks may hold."""
    return bool(line["settings"].get("train.frozen"))


def _group(line: Line) -> tuple[str | int, ...]:
    known = line["settings"]
    made_for = known.get("recover.teachers") or line["teachers"]
    crops = known.get("labels.crop_scale", [0.08, 1.0])[0]
    method, _, data = line["recipe"].partition("/")
    made_for, probed = " + ".join(map(_network, made_for)), _network(line["student"])
    target = known.get("recover.means.target", "class")
    about = made_for, line["ipc"], probed, f"from {crops:g}", line["reduced"]
    return DATA.get(data, data), f"`{method}` {target}", *about


def _network(name: str) -> str:
    return next((known for end, known in NETWORKS.items() if name.endswith(end)), name.rpartition("/")[2])


def _score(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return score({"mean": statistics.fmean(values), "std": deviation}, len(values))
