"""One recover step of the field and of fastcondense, interleaved in one process.

    python benchmarks/recover_step.py --statistics sre2l --images 20 --size 64 --out FILE.jsonl

plain                the network alone, cross-entropy: crop, forward, backward to the images, Adam, clip
plain-channels_last  the same in the channels_last layout; plain-bf16: in bf16 too
published            plain with the paper's statistics in forward hooks, as published (fp32 with TF32 convolutions)
published-bf16       the same in bf16, channels_last and without reading the loss on the host
compiled             published-bf16 under torch.compile(mode="max-autotune"), statistics written as var_mean
ours-fp32, -tf32, -bf16  fastcondense's step, on a GPU as a CUDA graph; its fp32 rounds nothing to TF32
ours-bf16-eager      the same without a graph; ours-unmatched: ours-tf32's kernels and graph, cross-entropy alone

Each line is a variant: median and quartiles in milliseconds, and the ratios of its median to plain's, to that of the
plain step of its own dtype and layout, and to the published one's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from measure import DEVICE, Line, copy_ceiling, interleaved, missing_compiler, write
from peers import Objective, PeerStep, Style
from steps import OurStep, our_step

from fastcondense.precision import Precision
from fastcondense.teachers import zoo

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
}
ON_CPU = ["plain", "plain-channels_last", "published", "ours-unmatched", "ours-fp32"]


class Unavailable(Exception):
    """A variant that cannot run here, and why."""


def make(variant: str, network: str, num_images: int, size: int, objective: Objective) -> Callable[[], None]:
    """A variant's step. Raises Unavailable where it cannot run."""
    torch.manual_seed(0)
    net, alone = zoo.build(network, 1000), Objective()
    peer = partial(PeerStep, net, num_images, size, device=DEVICE)

    def ours(aim: Objective, precision: Precision) -> OurStep:
        return our_step(net, num_images, size, aim, DEVICE, precision)

    if variant == "compiled" and (reason := missing_compiler()):
        raise Unavailable(reason)
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
    }
    return steps[variant]()


def available(variants: list[str], *arguments: str | int | Objective) -> dict[str, Callable[[], None]]:
    """The variants that run here, after a first step; the others are said to be skipped."""
    steps: dict[str, Callable[[], None]] = {}
    for variant in variants:
        try:
            step = make(variant, *arguments)
            step()
            steps[variant] = step
        except Unavailable as reason:
            print(f"{variant} skipped: {reason}", flush=True)
        except torch.cuda.OutOfMemoryError:
            print(f"{variant} skipped: out of memory", flush=True)
        except Exception as error:  # whatever a compiler raises must not end the benchmark
            if variant != "compiled":
                raise
            print(f"{variant} skipped: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="torchvision/resnet18")
    parser.add_argument("--statistics", choices=("sre2l", "edc"), default="sre2l")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument(
        "--variants", nargs="+", choices=PLAIN_OF, help="default: all on a GPU, those in fp32 elsewhere"
    )
    parser.add_argument("--tv-weight", type=float, default=0.0, help="total variation, in the published step and ours")
    parser.add_argument("--l2-weight", type=float, default=0.0, help="the images' norm, likewise")
    parser.add_argument("--out", type=Path, help="file to which the lines are appended")
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    objective = Objective(options.statistics, tv_weight=options.tv_weight, l2_weight=options.l2_weight)
    chosen = options.variants or (list(PLAIN_OF) if DEVICE.type == "cuda" else ON_CPU)
    steps = available(chosen, options.network, options.images, options.size, objective)
    timings = interleaved(steps, options.repeats, options.warmup)

    def ratio(variant: str, reference: str) -> float | None:
        return round(timings[variant].median / timings[reference].median, 3) if reference in timings else None

    lines: list[Line] = []
    for variant, timing in timings.items():
        to_plain, to_alike = ratio(variant, "plain"), ratio(variant, PLAIN_OF[variant])
        to_published = ratio(variant, "published")
        print(f"{variant:20} {timing.median:9.2f} ms, of plain {to_plain}, alike {to_alike}, published {to_published}")
        lines.append(
            {
                "benchmark": "recover_step",
                "statistics": options.statistics,
                "variant": variant,
                "network": options.network,
                "shape": [options.images, 3, options.size, options.size],
                "tv_weight": options.tv_weight,
                "l2_weight": options.l2_weight,
                **timing.line(),
                "ratio_to_plain": to_plain,
                "ratio_to_plain_alike": to_alike,
                "ratio_to_published": to_published,
                "copy_GB/s": round(copy_ceiling(), 1),
            }
        )
    write(lines, options.out)


if __name__ == "__main__":
    main()
