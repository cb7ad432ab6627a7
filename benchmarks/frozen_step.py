"""One step of condensing for a frozen backbone: linear gradient matching as published, in plain PyTorch, and ours.

    fastcondense bench frozen --network torchvision/mobilenet_v2 --size 224 --views 10

published       a new random layer, its gradient from a batch of real views and from views of the condensed images, a
                cosine, Adam on a pyramid of levels (LGM, NeurIPS'25); float32 and planar, as written
published-bf16  the same channels_last, with the network in bf16 by autocast
gradient-*      ours of the same objective (recipes lgm/...): traced network, our crops, pyramid and Adam
means-*         ours of the class means (recipes means/...), which needs no layer and no real image meanwhile

As many real views as condensed ones, decoded and in memory for all. Each line is a variant: median and quartiles in
milliseconds, and the ratio of its median to the published one's. Weights are random: time does not depend on them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import torch
from measure import DEVICE, interleaved
from peers import MEAN, STD
from session import Session
from torch import Tensor, nn
from torch.nn import functional as F

from fastcondense.data.jobs import Job
from fastcondense.devices import fastest_arithmetic
from fastcondense.networks import zoo
from fastcondense.networks.encoders import classifier_name
from fastcondense.networks.graph import Graphs
from fastcondense.networks.precision import arithmetic
from fastcondense.recipe.means import Means, Pyramid
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Recover
from fastcondense.recipe.settings import Dataset
from fastcondense.recipe.shared import Precision
from fastcondense.recover.by_means import MeansStep
from fastcondense.recover.feature_targets import ClassDirections, Target, backbone_of
from fastcondense.recover.head_gradients import HeadGradients, head_gradient
from fastcondense.recover.pyramid import COLOURS
from fastcondense.statistics.class_directions import Directions
from fastcondense.teachers.teacher import Teacher

CLASSES = 10
QUICK = {"network": "zoo/resnet20", "size": 32, "views": 2, "repeats": 3, "warmup": 1}
VARIANTS = ("published", "published-bf16", "gradient-fp32", "gradient-bf16", "means-fp32", "means-bf16")


class PublishedStep:
    """An iteration with all levels in: random images, one a class, are advanced by a call."""

    def __init__(self, net: nn.Module, classifier: str, size: int, views: int, *, is_bf16: bool):
        self.size, self.views, self.is_bf16 = size, views, is_bf16
        self.layout = torch.channels_last if is_bf16 else torch.contiguous_format
        self.net = net.to(memory_format=self.layout)
        self.seen: list[Tensor] = []
        net.get_submodule(classifier).register_forward_pre_hook(lambda _, args: self.seen.append(args[0]))
        sides = Pyramid().sides(size)
        self.levels = [torch.randn(CLASSES, 3, side, side, device=DEVICE).requires_grad_() for side in sides]
        self.optimizer = torch.optim.Adam(self.levels, lr=2e-3)
        self.colours = torch.tensor(COLOURS, device=DEVICE)
        self.mean, self.std = (torch.tensor(values, device=DEVICE)[:, None, None] for values in (MEAN, STD))
        self.labels = torch.arange(CLASSES, device=DEVICE).repeat(views)
        self.real = torch.rand(len(self.labels), 3, size, size, device=DEVICE)

    def view(self, images: Tensor) -> Tensor:
        """A window of 0.08 to 1 of the area of each, mirrored half of the time, by affine_grid and grid_sample."""
        n = len(images)
        area, ratio = torch.rand(n).mul(0.92).add(0.08), torch.rand(n).mul(0.57).sub(0.29).exp()
        height, width = (area / ratio).sqrt(), (area * ratio).sqrt()
        theta = torch.zeros(n, 2, 3)
        theta[:, 0, 0], theta[:, 1, 1] = width * (torch.rand(n) < 0.5).float().mul(2).sub(1), height
        theta[:, 0, 2], theta[:, 1, 2] = (torch.rand(n) * 2 - 1) * (1 - width), (torch.rand(n) * 2 - 1) * (1 - height)
        grid = F.affine_grid(theta.to(DEVICE), list(images.shape), align_corners=False)
        return (F.grid_sample(images, grid, align_corners=False) - self.mean) / self.std

    def features(self, images: Tensor) -> Tensor:
        self.seen.clear()
        low = torch.autocast(DEVICE.type, torch.bfloat16) if self.is_bf16 else nullcontext()
        with low:
            self.net(self.view(images).contiguous(memory_format=self.layout))
        return self.seen[0].float()

    def pixels(self) -> Tensor:
        total = sum(F.interpolate(level, self.size, mode="bilinear") for level in self.levels)
        return torch.einsum("kc,nchw->nkhw", 2 * self.colours, total).sigmoid()

    def __call__(self) -> None:
        seen = self.features(self.pixels().repeat(self.views, 1, 1, 1))
        with torch.no_grad():
            real = self.features(self.real)
        head = 0.01 * torch.randn(CLASSES, seen.shape[1], device=DEVICE)
        wanted, made = head_gradient(real, self.labels, head), head_gradient(seen, self.labels, head)
        self.optimizer.zero_grad()
        (1 - F.cosine_similarity(made.flatten(), wanted.flatten(), 0)).backward()
        self.optimizer.step()


class OurStep:
    """An iteration of a job with all levels in, as users run it: on a GPU a CUDA graph."""

    def __init__(self, net: nn.Module, name: str, size: int, views: int, target: str, precision: Precision):
        recover = Recover(
            iterations=64, precision=precision, crop_scale=(0.08, 1.0), pyramid=Pyramid(every=1),
            means=Means(views=views, target=target),
        )  # fmt: skip
        recipe = Recipe(ipc=1, dataset=Dataset(image_size=size, resize=size), recover=recover)
        classes = [str(k) for k in range(CLASSES)]
        teacher = Teacher.of(net, name, classes, range(CLASSES), recipe.dataset).to(DEVICE)
        backbone, job = backbone_of(teacher, precision), Job(0, 0, 1, 0, CLASSES)
        self.precision, self.step = precision, MeansStep(recipe, job, [backbone], [], DEVICE)
        self.step.targets = [self.target(recipe, backbone, job)]
        self.step.load(job)
        for iteration in range(len(self.step.pyramid.levels)):
            self.step.pyramid.grow(iteration)
        self.replay = Graphs(DEVICE).capture(self.step, self.step.step.zero_)

    def target(self, recipe: Recipe, backbone: Callable[[Tensor], Tensor], job: Job) -> Target:
        shape = (CLASSES * recipe.recover.means.views, 3, *2 * (recipe.dataset.image_size,))
        real = torch.randn(shape, device=DEVICE).contiguous(memory_format=torch.channels_last)
        labels = torch.arange(CLASSES, device=DEVICE).repeat(recipe.recover.means.views)
        if recipe.recover.means.target == "gradient":
            run = SimpleNamespace(recipe=recipe, device=DEVICE, real=SimpleNamespace(classes=range(CLASSES)))
            return HeadGradients(run, backbone, lambda _: (real, labels), job)
        with torch.no_grad():
            return ClassDirections(Directions.between(backbone(real[:CLASSES]).cpu()), job, DEVICE)

    def __call__(self) -> None:
        with arithmetic(self.precision):
            self.step.targets[0].refresh(0)
            self.replay()
            self.step.step.zero_()


def make(variant: str, network: str, size: int, views: int) -> Callable[[], None]:
    """A variant's step, with a network of its own."""
    torch.manual_seed(0)
    net = zoo.build(network, 1000).eval().requires_grad_(False).to(DEVICE)
    kind, _, precision = variant.partition("-")
    if kind == "published":
        return PublishedStep(net, classifier_name(network), size, views, is_bf16=precision == "bf16")
    return OurStep(net, network, size, views, "class" if kind == "means" else kind, precision)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", default="torchvision/mobilenet_v2")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--views", type=int, default=3, help="of each of ten images, one a class, in a step")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, help="default: all; without bf16 where runs do not take it"
    )


def run(session: Session, options: argparse.Namespace) -> None:
    has_bf16 = fastest_arithmetic(DEVICE)[0] == "bf16"
    chosen = options.variants or [name for name in VARIANTS if has_bf16 or not name.endswith("bf16")]
    steps: dict[str, Callable[[], object]] = {}
    for variant in chosen:
        step = session.attempt(variant, partial(make, variant, options.network, options.size, options.views))
        if step:
            steps[variant] = step
    timings = interleaved(steps, options.repeats, options.warmup)
    for variant, timing in timings.items():
        ratio = round(timing.median / timings["published"].median, 3) if "published" in timings else None
        print(f"{variant:16} {timing.median:9.2f} ms, of published {ratio}", flush=True)
        session.add(
            "frozen step",
            variant,
            timing,
            shapes=[(CLASSES, 3, options.size, options.size)],
            dtype="bfloat16" if variant.endswith("bf16") else "float32",
            network=options.network,
            views=options.views,
            ratio_to_published=ratio,
        )
