"""Bytes, launches and passes of one recover step: the network alone, and SRe2L's and EDC's statistics on it.

    python benchmarks/traffic.py --out FILE.jsonl

Counted by `meter`, not timed, so the figures do not depend on the device. Each step runs with 2 and with 4 images on
the CPU; bytes are extrapolated from the two to --batch. A pass is one read or write of a layer's whole input.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from measure import Line, write
from meter import Meter, metered
from peers import Objective, PeerStep, Style
from steps import Unavailable, our_step
from torch import nn

from fastcondense import zoo
from fastcondense.fuse import FrozenBatchNorm
from fastcondense.kernels import crop

PARTS = ("image", "BatchNorm", "convolution input", "convolution", "rest of network", "loss", "update")
PRIOR = {"tv_weight": 1e-4, "l2_weight": 1e-5}  # SRe2L's defaults
OBJECTIVES = {
    "plain": Objective(),
    "sre2l": Objective("sre2l", **PRIOR),
    "edc": Objective("edc", match_weight=0.1),
}
CPU = torch.device("cpu")


def part_of(module: nn.Module) -> str | None:
    """The part of the step that begins with `module`; ReLU and addition belong to what is before them."""
    if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm):
        return "BatchNorm"
    if isinstance(module, nn.Conv2d):
        return "convolution input"
    return "rest of network" if isinstance(module, nn.MaxPool2d | nn.AdaptiveAvgPool2d | nn.Linear) else None


def count(step: Callable[[], object], net: nn.Module) -> Meter:
    """The launches of one step, after another that warms up."""
    step()
    meter = Meter()
    meter.follow(net, part_of)
    with metered(meter):
        step()
    return meter


def published(network: str, objective: Objective, num_images: int, size: int) -> Meter:
    """A step with forward hooks."""
    step = PeerStep(zoo.build(network, 1000), num_images, size, objective, Style(), CPU)
    step.draw = lambda: ((size // 8, size // 8, size // 2, size // 2), True, (1, 2))
    return count(step, step.loss.net)


def ours(network: str, objective: Objective, num_images: int, size: int) -> Meter:
    """fastcondense's step. Raises Unavailable for an objective that it has not."""
    step = our_step(zoo.build(network, 1000), num_images, size, objective, CPU)
    with mock.patch.object(crop, "_check_overhang"):  # not run on a GPU
        return count(step, step.teachers[0].fused)


def by_part(meter: Meter) -> tuple[Counter[str], Counter[str]]:
    """Bytes and launches; what a convolution itself moves is apart from what happens to its input."""
    size, number = Counter[str](), Counter[str]()
    for record in meter.records:
        part = "convolution" if "convolution" in record.name else record.part
        size[part] += record.read + record.written
        number[part] += 1
    return size, number


def passes(meter: Meter) -> dict[str, float]:
    """Passes over each layer's input, without convolutions themselves."""
    moved = Counter[str]()
    for record in meter.records:
        if record.layer and "convolution" not in record.name:
            moved[record.layer] += record.read + record.written
    return {layer: moved[layer] / size for layer, size in meter.sizes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="torchvision/resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--out", type=Path, help="file to which the lines are appended")
    options = parser.parse_args()
    base = {"network": options.network, "size": options.size, "batch": options.batch, "dtype": "float32"}
    lines: list[Line] = []
    layers: dict[str, dict[str, float]] = {}
    kinds: dict[str, str] = {}
    print("GB a step".ljust(18), *(part.rjust(18) for part in PARTS), "total".rjust(8), "launches".rjust(9), "syncs")
    for name, objective in OBJECTIVES.items():
        for style, measure in (("published", published), ("ours", ours)):
            if (name, style) == ("plain", "ours"):
                continue
            label = f"{name} {style}" if name != "plain" else name
            try:
                small, large = (measure(options.network, objective, count, options.size) for count in (2, 4))
            except Unavailable as reason:
                print(f"{label:18} skipped: {reason}")
                continue
            (bytes2, _), (bytes4, number) = by_part(small), by_part(large)
            gigabytes = {
                part: (bytes4[part] + (bytes4[part] - bytes2[part]) / 2 * (options.batch - 4)) / 1e9 for part in PARTS
            }
            total, launches = sum(gigabytes.values()), sum(number.values())
            print(
                label.ljust(18),
                *(f"{gigabytes[part]:18.2f}" for part in PARTS),
                f"{total:8.2f} {launches:9d} {large.syncs:5d}",
            )
            lines.append(
                {"benchmark": "traffic", "step": name, "style": style, **base}
                | {"gigabytes": {part: round(gigabytes[part], 3) for part in PARTS} | {"total": round(total, 3)}}
                | {"launches": dict(number) | {"total": launches}, "syncs": large.syncs}
            )
            layers[label] = passes(large)
            kinds |= {record.layer: record.part for record in large.records if record.layer in large.sizes}
    for kind, title in (("BatchNorm", "passes per BN tensor"), ("convolution input", "extra passes per conv input")):
        columns = [label for label in layers if kind == "BatchNorm" or label != "plain"]
        print("\n" + title.ljust(28), *(column.rjust(16) for column in columns))
        for layer in (layer for layer in layers["plain"] if kinds[layer] == kind):
            base_passes = layers["plain"][layer] if kind == "convolution input" else 0.0
            found = {column: round(layers[column].get(layer, 0.0) - base_passes, 2) for column in columns}
            print(layer.ljust(28), *(f"{value:16.2f}" for value in found.values()))
            lines.append({"benchmark": "passes", "kind": kind, "layer": layer, **base, "passes": found})
    write(lines, options.out)


if __name__ == "__main__":
    main()
