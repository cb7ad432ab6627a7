"""One recover step of the field and of fastcondense, interleaved in one process.

    fastcondense bench recover --statistics sre2l --images 20 --size 64
    fastcondense bench recover --statistics edc --profile trace.json

plain                the network alone, cross-entropy: crop, forward, backward to the images, Adam, clip
plain-channels_last  the same in the channels_last layout; plain-bf16: in bf16 too
published            plain with the paper's statistics in forward hooks, as published (fp32 with TF32 convolutions)
published-bf16       the same in bf16, channels_last and without reading the loss on the host
compiled             published-bf16 under torch.compile(mode="max-autotune"), statistics written as var_mean
ours-fp32, -tf32, -bf16  fastcondense's step, on a GPU as a CUDA graph; its fp32 rounds nothing to TF32
ours-bf16-fastest    recover.reproducible = false: algorithms that cuDNN measures, as those of others above
ours-bf16-eager      ours-bf16 without a graph; ours-unmatched: ours-tf32's kernels and graph, cross-entropy alone

Each line is a variant: median and quartiles in milliseconds, and the ratios of its median to plain's, to that of the
plain step of its own dtype and layout, and to the published one's. --profile tells instead where the time of our step
goes (step_profile.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from measure import DEVICE, copy_ceiling, interleaved, missing_compiler
from peers import Objective, PeerStep, Style
from session import Session
from step_profile import profile
from steps import OurStep, our_step

from fastcondense.devices import fastest_arithmetic
from fastcondense.networks import zoo
from fastcondense.recipe.shared import Precision

CHANNELS_LAST = Style(channels_last=True)
BF16 = Style(channels_last=True, bf16=True, reads_loss=False)
PLAIN_OF = {
    "plain": "plain",
    "plain-channels_last": "plain-channels_last",
    "plain-bf16": "plain-bf16",
    "published": "plain",
    "published-bf16": "plain-bf16",
    "compiled": "plain-bf16",
    "ours-unmatched": "plain-channels_last",
    "ours-fp32": "plain-channels_last",
    "ours-tf32": "plain-channels_last",
    "ours-bf16": "plain-bf16",
    "ours-bf16-eager": "plain-bf16",
    "ours-bf16-fastest": "plain-bf16",
}
DTYPE_OF = {name: "bfloat16" for name, plain in PLAIN_OF.items() if plain == "plain-bf16"} | {"ours-tf32": "tf32"}
QUICK = {"network": "zoo/resnet20", "images": 4, "size": 32, "repeats": 4, "warmup": 1}
ON_CPU = ["plain", "plain-channels_last", "published", "ours-unmatched", "ours-fp32"]
if fastest_arithmetic(DEVICE)[0] == "bf16":
    ON_CPU += ["plain-bf16", "published-bf16", "ours-bf16"]


def make(variant: str, network: str, num_images: int, size: int, objective: Objective) -> Callable[[], None]:
    """A variant's step."""
    torch.manual_seed(0)
    net, alone = zoo.build(network, 1000), Objective()
    peer = partial(PeerStep, net, num_images, size, device=DEVICE)

    def ours(aim: Objective, precision: Precision, *, is_reproducible: bool = True) -> OurStep:
        return our_step(net, num_images, size, aim, DEVICE, precision, is_reproducible=is_reproducible)

    steps: dict[str, Callable[[], Callable[[], None]]] = {
        "plain": partial(peer, alone, replace(Style(), reads_loss=False)),
        "plain-channels_last": partial(peer, alone, replace(CHANNELS_LAST, reads_loss=False)),
        "plain-bf16": partial(peer, alone, BF16),
        "published": partial(peer, objective, Style()),
        "published-bf16": partial(peer, objective, BF16),
        "compiled": partial(peer, objective, replace(BF16, compiled=True)),
        "ours-unmatched": lambda: ours(alone, "tf32").captured(),
        "ours-fp32": lambda: ours(objective, "fp32").captured(),
        "ours-tf32": lambda: ours(objective, "tf32").captured(),
        "ours-bf16": lambda: ours(objective, "bf16").captured(),
        "ours-bf16-eager": lambda: ours(objective, "bf16"),
        "ours-bf16-fastest": lambda: ours(objective, "bf16", is_reproducible=False).captured(),
    }
    return steps[variant]()


def add_options(parser: argparse.ArgumentParser) -> None:
    is_gpu = DEVICE.type == "cuda"
    parser.add_argument("--network", default="torchvision/resnet18")
    parser.add_argument("--statistics", nargs="+", choices=("sre2l", "edc"), default=["sre2l", "edc"])
    parser.add_argument("--images", type=int, default=100 if is_gpu else 20)
    parser.add_argument("--size", type=int, default=224 if is_gpu else 64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument(
        "--variants", nargs="+", choices=PLAIN_OF, help="default: all on a GPU, those in fp32 elsewhere"
    )
    parser.add_argument("--tv-weight", type=float, default=0.0, help="total variation, in the published step and ours")
    parser.add_argument("--l2-weight", type=float, default=0.0, help="the images' norm, likewise")
    precision = "bf16" if is_gpu else "fp32"
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default=precision, help="of --profile's step")
    parser.add_argument(
        "--profile",
        type=Path,
        nargs="?",
        const=Path("recover-trace.json"),
        metavar="TRACE.json",
        help="profile our step instead; writes a Chrome trace for each of the statistics",
    )


def run(session: Session, options: argparse.Namespace) -> None:
    torch.backends.cudnn.benchmark = True
    for statistics in options.statistics:
        objective = Objective(statistics, tv_weight=options.tv_weight, l2_weight=options.l2_weight)
        if options.profile:
            torch.manual_seed(0)
            net = zoo.build(options.network, 1000)
            trace = options.profile.with_stem(f"{options.profile.stem}-{statistics}")
            profile(session, net, objective, options.precision, trace, options)
        else:
            compare(session, objective, options)


def compare(session: Session, objective: Objective, options: argparse.Namespace) -> None:
    """All variants that run here, in turns, and their lines."""
    chosen = options.variants or (list(PLAIN_OF) if DEVICE.type == "cuda" else ON_CPU)
    for variant in PLAIN_OF if options.variants is None else ():
        if variant not in chosen:
            session.skip(
                f"{objective.statistics} {variant}",
                "not on this CPU: TF32 and compilers are a GPU's, bf16 needs a CPU that multiplies it fast",
            )
    steps: dict[str, Callable[[], object]] = {}
    for variant in chosen:
        name, shapes = f"{objective.statistics} {variant}", (options.network, options.images, options.size)
        if variant == "compiled" and (reason := missing_compiler()):
            session.skip(name, reason)
        elif step := session.attempt(name, partial(make, variant, *shapes, objective), variant == "compiled"):
            steps[variant] = step
    timings = interleaved(steps, options.repeats, options.warmup)

    def ratio(variant: str, reference: str) -> float | None:
        return round(timings[variant].median / timings[reference].median, 3) if reference in timings else None

    for variant, timing in timings.items():
        to_plain, to_alike = ratio(variant, "plain"), ratio(variant, PLAIN_OF[variant])
        to_published = ratio(variant, "published")
        ratios = f"of plain {to_plain}, alike {to_alike}, published {to_published}"
        print(f"{objective.statistics:6} {variant:20} {timing.median:9.2f} ms, {ratios}", flush=True)
        session.add(
            f"{objective.statistics} step",
            variant,
            timing,
            shapes=[(options.images, 3, options.size, options.size)],
            dtype=DTYPE_OF.get(variant, "float32"),
            statistics=objective.statistics,
            network=options.network,
            tv_weight=options.tv_weight,
            l2_weight=options.l2_weight,
            ratio_to_plain=to_plain,
            ratio_to_plain_alike=to_alike,
            ratio_to_published=to_published,
            **{"copy_GB/s": round(copy_ceiling(), 1)},
        )
