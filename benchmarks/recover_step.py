"""One recover step, three ways, interleaved in one process: without matching, with published-style hooks, and ours.

    python benchmarks/recover_step.py --network torchvision/resnet18 --images 20 --size 64 --out FILE.jsonl

plain     the unfused network, cross-entropy alone: crop, forward, backward to the images, Adam, clip
hooks     the same plus SRe2L's forward hooks as published: a mean, a copy of the activation, a variance a layer
ours      fastcondense's step, all losses included

Each line of the result is one variant: median and quartiles in milliseconds, and the ratio of its median to plain's.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcondense import zoo
from fastcondense.recipe import Dataset, Recipe, Recover
from fastcondense.recover import RecoverStep, jobs
from fastcondense.teacher import Teacher

CLASSES = 1000


def peer_step(net: nn.Module, recipe: Recipe, has_matching: bool, device: torch.device) -> Callable[[], None]:
    """The published loop's step on random images; with hooks if `has_matching`."""
    size, count = recipe.dataset.image_size, recipe.recover.batch_size
    images = torch.randn(count, 3, size, size, device=device).requires_grad_()
    targets = torch.arange(count, device=device)
    optimizer = torch.optim.Adam([images], lr=0.1, betas=recipe.recover.betas)
    low, high = torch.full((3, 1, 1), -2.0, device=device), torch.full((3, 1, 1), 2.0, device=device)
    distances: list[Tensor] = []

    def hook(module: nn.BatchNorm2d, inputs: tuple[Tensor], _: Tensor) -> None:
        x = inputs[0]
        mean = x.mean((0, 2, 3))
        var = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        distances.append(torch.norm(module.running_var - var, 2) + torch.norm(module.running_mean - mean, 2))

    if has_matching:
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(hook)

    def step() -> None:
        distances.clear()
        crop = images[:, :, size // 8 : -size // 8, size // 8 : -size // 8]
        view = F.interpolate(crop, (size, size), mode="bilinear", align_corners=False)
        loss = F.cross_entropy(net(view), targets)
        if has_matching:
            loss = loss + 0.01 * (10 * distances[0] + sum(distances[1:]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            images.copy_(torch.maximum(torch.minimum(images, high), low))

    return step


def our_step(net: nn.Module, recipe: Recipe, device: torch.device) -> Callable[[], None]:
    """RecoverStep of a job; its iteration counter wraps so that any number of steps can be timed."""
    teacher = Teacher.of(net, "benchmark", [str(k) for k in range(CLASSES)], range(CLASSES), recipe.dataset)
    made = RecoverStep(recipe, jobs(recipe, CLASSES)[0], [teacher.to(device)], device)

    def step() -> None:
        made(0)
        made.step.remainder_(recipe.recover.iterations)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="torchvision/resnet18")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="file to which the lines are appended")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    recipe = Recipe(
        dataset=Dataset(image_size=options.size, resize=options.size),
        recover=Recover(iterations=64, batch_size=options.images, roll=(0, 4)),
    )

    def network() -> nn.Module:
        return zoo.build(options.network, CLASSES).eval().requires_grad_(False).to(device)

    variants = {
        "plain": peer_step(network(), recipe, False, device),
        "hooks": peer_step(network(), recipe, True, device),
        "ours": our_step(network().cpu(), recipe, device),
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(options.repeats + 3):
        for name, step in variants.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat >= 3:
                milliseconds[name].append(1e3 * (time.perf_counter() - start))
    plain = statistics.median(milliseconds["plain"])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    for name, times in milliseconds.items():
        low, median, high = statistics.quantiles(times, n=4)
        line = {
            "what": "recover_step",
            "variant": name,
            "network": options.network,
            "shape": [options.images, 3, options.size, options.size],
            "dtype": "float32",
            "median_ms": round(median, 2),
            "quartiles_ms": [round(low, 2), round(high, 2)],
            "ratio_to_plain": round(median / plain, 3),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "commit": commit,
        }
        sys.stdout.write(json.dumps(line) + "\n")
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
