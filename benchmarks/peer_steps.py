"""The published code's step and fastcondense's, interleaved in one process, on the same images and network.

    python benchmarks/published/repository.py FOLDER
    fastcondense bench peers --peers FOLDER --methods sre2l edc --images 20 --size 64

published-code   the method's own repository at a pinned commit, in FOLDER (or FASTCONDENSE_PEERS); its loop runs as
                 it stands, and what had to be changed around it is in the line
published-style  our rewriting of SRe2L's and EDC's step in that style (peers.py); compiled: under torch.compile
ours-fp32        fastcondense's, on a GPU as a CUDA graph; there also ours-tf32, and ours-bf16 where bf16 is native

sre2l, gvbsm, edc: one iteration. rded: scores and mosaics of one class. mdc: a class's step on ConvNet-3, 32 pixels.
A line is a variant: median and quartiles in milliseconds, and the ratio of the published code's median to it. A method
whose code cannot be had has a line that says why, absent or failed with its error; ours is then not measured either.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import DEVICE, Line, Timing, interleaved, missing_compiler
from peers import Objective, PeerStep, Style
from published.mdc import MDC
from published.ours import gradient_step, mosaic_step, recover_step
from published.peer import CLASSES, Peer, Setting, Step, Unavailable, prepared
from published.rded import RDED
from published.real_images import read_images
from published.sre2l import SRe2L
from published.statistics_peers import EDC, GVBSM
from session import Session

from fastcondense.devices import fastest_arithmetic
from fastcondense.networks import zoo
from fastcondense.recipe.shared import Precision

PEERS: dict[str, Peer] = {"sre2l": SRe2L(), "gvbsm": GVBSM(), "edc": EDC(), "rded": RDED(), "mdc": MDC()}
STYLED = ("sre2l", "edc")
COMPILED = Style(compiled=True, reads_loss=False)
MDC_IMAGES, MDC_SIZE = 640, 32
QUICK = {"network": "zoo/resnet20", "images": 4, "ipc": 2, "size": 16, "real_images": 8, "repeats": 2, "warmup": 1}
QUICK |= {"methods": ["sre2l", "gvbsm", "edc", "rded"]}


def variants(method: str, setting: Setting) -> dict[str, Callable[[], Callable[[], object]]]:
    """How to make each of our variants."""
    if method == "rded":
        return {"ours-fp32": partial(mosaic_step, setting)}
    if method == "mdc":
        return {"ours-fp32": partial(gradient_step, setting)}
    made: dict[str, Callable[[], Callable[[], object]]] = {}
    if method in STYLED:
        objective = Objective(method)
        styled = partial(PeerStep, num_images=setting.count, size=setting.size, objective=objective, device=DEVICE)
        made["published-style"] = lambda: styled(setting.frozen(), style=Style(), num_classes=CLASSES)
        made["compiled"] = lambda: styled(setting.frozen(), style=COMPILED, num_classes=CLASSES)
    precisions: list[Precision] = ["fp32"] + ["tf32"] * (DEVICE.type == "cuda")
    precisions += ["bf16"] * (fastest_arithmetic(DEVICE)[0] == "bf16")
    for precision in precisions:
        made[f"ours-{precision}"] = lambda precision=precision: recover_step(method, setting, precision).captured()
    return made


def ours(session: Session, method: str, setting: Setting, is_compiled: bool) -> dict[str, Step]:
    """Our variants after a first step; what cannot run is skipped."""
    steps: dict[str, Step] = {}
    for variant, make in variants(method, setting).items():
        optional, name = variant == "compiled", f"{method} {variant}"
        if optional and (not is_compiled or missing_compiler()):
            session.skip(name, missing_compiler() or "not asked for (--compiled)")
        elif (step := session.attempt(name, make, optional)) is not None:
            steps[variant] = Step(step)
    return steps


def report(session: Session, method: str, steps: dict[str, Step], timings: dict[str, Timing], about: Line) -> None:
    """A line for each variant."""
    peer, published = PEERS[method], timings["published-code"]
    repository = peer.repository
    for variant, step in steps.items():
        timing, more = timings[variant], dict(about)
        more["published_over_it"] = round(published.median / timing.median, 3)
        if variant == "published-code":
            more |= {"peer": str(repository), "url": repository.url, "licence": repository.licence}
            more |= {"runs": peer.what, "adaptations": list(step.adaptations)}
        dtype = {"ours-tf32": "tf32", "ours-bf16": "bfloat16"}.get(variant, "float32")
        print(
            f"  {method:6} {variant:16} {timing.median:9.2f} ms, published code takes {more['published_over_it']} of it"
        )
        session.add(method, variant, timing, dtype=dtype, **more)


def measure(session: Session, method: str, peers: Path | None, setting: Setting, options: argparse.Namespace) -> None:
    """All variants of a method, interleaved; nothing but the reason where its code cannot be had."""
    code = prepared(PEERS[method], peers, setting)
    if isinstance(code, Unavailable):
        session.skip(f"{method} {PEERS[method].repository}", f"{code.status}: {code.reason}")
        return
    try:
        steps = {"published-code": code, **ours(session, method, setting, options.compiled)}
        ready = {variant: step.advance for variant, step in steps.items()}
        timings = interleaved(ready, options.repeats, options.warmup)
    finally:
        code.close()
    network = "convnet3_in" if method == "mdc" else setting.network
    report(session, method, steps, timings, {"network": network, "shapes": [setting.images.shape], "ipc": setting.ipc})


def add_options(parser: argparse.ArgumentParser) -> None:
    is_gpu = DEVICE.type == "cuda"
    parser.add_argument("--peers", type=Path, default=os.environ.get("FASTCONDENSE_PEERS"), help="the fetched folder")
    parser.add_argument("--methods", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--network", default="torchvision/resnet18")
    parser.add_argument("--images", type=int, default=80 if is_gpu else 20, help="that are recovered together")
    parser.add_argument("--real-images", type=int, default=300 if is_gpu else 60, help="of the class of RDED's mosaics")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--size", type=int, default=224 if is_gpu else 64)
    parser.add_argument("--data", type=Path, help="folder of <class>/<image>; default: scikit-learn's digits")
    parser.add_argument("--compiled", action="store_true", help="the published style under torch.compile too")
    parser.add_argument("--repeats", type=int, default=20 if is_gpu else 7)
    parser.add_argument("--warmup", type=int, default=2)


def run(session: Session, options: argparse.Namespace) -> None:
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    net = zoo.build(options.network, CLASSES)
    counts = {"rded": (options.real_images, options.size), "mdc": (MDC_IMAGES, MDC_SIZE)}
    for method in options.methods:
        with tempfile.TemporaryDirectory() as scratch:
            count, size = counts.get(method, (options.images, options.size))
            images = read_images(options.data, count, size).to(DEVICE)
            ipc = options.ipc if method in counts else min(options.ipc, count)
            setting = Setting(options.network, net, images, ipc, DEVICE, Path(scratch))
            measure(session, method, options.peers, setting, options)
