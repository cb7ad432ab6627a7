"""Bytes, launches and passes of one recover step: the network alone, and SRe2L's and EDC's statistics on it.

    fastcondense bench traffic

Counted by `meter`, not timed, so the figures do not depend on the device. Each step runs with 2 and with 4 images on
the CPU; bytes are extrapolated from the two to --batch. Partial sums weigh more in such small batches, so ours is said
to make up to 0.25 passes too many. A pass is one read or write of a layer's whole input.

ReLU and addition belong to the BatchNorm before them, which is the downsampling one in the published step, and the
other one in ours; there the stem's max-pool belongs to it too. Passes of a convolution's statistic are those that the
step makes beyond the plain one. In ours, channels' moments are taken by the BatchNorm that writes what a convolution
reads, and are counted there; patches' are taken by a tap, which counts for the first of the convolutions that share it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
from meter import Meter, launches, metered
from peers import Objective, PeerStep, Style
from session import Session
from steps import our_step
from torch import nn

from fastcondense.kernels.crop import operator as crop_operator
from fastcondense.networks import zoo
from fastcondense.recipe.shared import Precision
from fastcondense.teachers.convolution import FrozenConvolution
from fastcondense.teachers.moments import BatchNormKeeper, ConvolutionTap

PARTS = ("image", "BatchNorm", "convolution input", "convolution", "rest of network", "loss", "update")
QUICK = {"network": "zoo/resnet20", "size": 32}
OBJECTIVES = {"plain": Objective(), "sre2l": Objective("sre2l"), "edc": Objective("edc", match_weight=0.1)}
CPU = torch.device("cpu")
Place = tuple[str, str]  # part and layer


def part_of(module: nn.Module) -> str | None:
    """The part of the step that begins with `module`, if it is not that of the module before it."""
    if isinstance(module, nn.BatchNorm2d | BatchNormKeeper):
        return "BatchNorm"
    if isinstance(module, nn.Conv2d | ConvolutionTap):
        return "convolution input"
    return "rest of network" if isinstance(module, nn.MaxPool2d | nn.AdaptiveAvgPool2d | nn.Linear) else None


@dataclass(frozen=True)
class Traffic:
    """One step: bytes, and the size of the layer's input, by part and layer; launches by part; reads by the host."""

    moved: dict[Place, float]
    sizes: dict[Place, float]
    launches: Counter[str]
    syncs: int

    def bytes_of(self, part: str) -> float:
        """Bytes of all layers of a part."""
        return sum(size for (of, _), size in self.moved.items() if of == part)

    def passes(self, part: str, plain: Traffic | None = None) -> dict[str, float]:
        """Passes over each layer's input, and over all of them, that are not made in the step `plain` too."""
        less = plain.moved if plain else {}
        moved = {place: size - less.get(place, 0.0) for place, size in self.moved.items() if place[0] == part}
        sizes = {place: size for place, size in self.sizes.items() if place[0] == part}
        return {place[1]: moved.get(place, 0.0) / size for place, size in sizes.items()} | {
            "all": sum(moved.values()) / sum(sizes.values())
        }


def count(step: Callable[[], object], net: nn.Module, optimizer: torch.optim.Adam | None = None) -> Meter:
    """The launches of one step, after another that warms up."""
    step()
    meter = Meter(state["step"] for state in optimizer.state.values()) if optimizer else Meter()
    meter.follow(net, part_of)
    with metered(meter):
        step()
    return meter


def published(network: str, objective: Objective, size: int, num_images: int) -> Meter:
    """A step with forward hooks, with one window."""
    step = PeerStep(zoo.build(network, 1000), num_images, size, objective, Style(), CPU)
    step.draw = lambda: ((size // 8, size // 8, size // 2, size // 2), True, (1, 2))
    return count(step, step.loss.net, step.optimizer)


def ours(network: str, objective: Objective, size: int, num_images: int, precision: Precision = "fp32") -> Meter:
    """fastcondense's step, whose kernels are counted only."""
    net = zoo.build(network, 1000)
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            module.name = name  # which it keeps behind a tap
    with (
        launches(lambda *_: None),
        mock.patch.object(crop_operator, "check_overhang"),  # neither the check nor the planar convolutions are a GPU's
        mock.patch.object(FrozenConvolution, "forward", nn.Conv2d.forward),
    ):
        step = our_step(net, num_images, size, objective, CPU, precision)
        return count(step, step.teachers[0].fused)


def moved(meter: Meter) -> Counter[Place]:
    """Bytes by part and layer; what a convolution itself moves is apart from what happens to its input."""
    total = Counter[Place]()
    for record in meter.records:
        part = "convolution" if "convolution" in record.name else record.part
        total[part, record.layer] += record.read + record.written
    return total


def traffic(step: Callable[[int], Meter], batch: int) -> Traffic:
    """A step of `batch` images, from one of 2 and one of 4."""
    small, large = step(2), step(4)

    def at_batch(two: dict[Place, int], four: dict[Place, int]) -> dict[Place, float]:
        return {place: size + (size - two[place]) / 2 * (batch - 4) for place, size in four.items()}

    number = Counter("convolution" if "convolution" in record.name else record.part for record in large.records)
    return Traffic(at_batch(moved(small), moved(large)), at_batch(small.sizes, large.sizes), number, large.syncs)


STEPS = {
    "plain": ("plain", published),
    "sre2l published": ("sre2l", published),
    "sre2l ours": ("sre2l", ours),
    "edc published": ("edc", published),
    "edc ours": ("edc", ours),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", default="torchvision/resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=100)


def run(session: Session, options: argparse.Namespace) -> None:
    base = {"network": options.network, "size": options.size, "batch": options.batch, "dtype": "float32"}
    base["shapes"] = [(options.batch, 3, options.size, options.size)]
    steps: dict[str, Traffic] = {}
    print("GB a step".ljust(16), *(f"{part:>17}" for part in (*PARTS, "total", "launches", "host reads")))
    for label, (name, style) in STEPS.items():
        step = steps[label] = traffic(partial(style, options.network, OBJECTIVES[name], options.size), options.batch)
        gigabytes = {part: round(step.bytes_of(part) / 1e9, 3) for part in PARTS}
        gigabytes["total"] = round(sum(gigabytes.values()), 3)
        launches = step.launches.total()
        print(label.ljust(16), *(f"{value:17.2f}" for value in gigabytes.values()), f"{launches:17d} {step.syncs:17d}")
        counts = {"launches": dict(step.launches) | {"total": launches}, "host_reads": step.syncs}
        variant = label.rpartition(" ")[2]
        total = round(1e9 * gigabytes["total"])
        session.add(f"{name} step", variant, num_bytes=total, step=label, **base, gigabytes=gigabytes, **counts)
    for part, title, less in (
        ("BatchNorm", "passes per BN tensor", None),
        ("convolution input", "passes per conv statistic", steps["plain"]),
    ):
        columns = {label: step.passes(part, less) for label, step in steps.items() if step is not less}
        print("\n" + title.ljust(28), *(f"{label:>16}" for label in columns))
        for layer in {layer: None for found in columns.values() for layer in found}:
            found = {label: round(column[layer], 2) for label, column in columns.items() if layer in column}
            print(layer.ljust(28), *(f"{found.get(label, float('nan')):16.2f}" for label in columns))
            session.add(f"passes over {layer}", "all", of=part, layer=layer, **base, passes=found)
