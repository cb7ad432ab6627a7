"""Time that a class's step of MDC takes, ours and a stand-in of the published loop, and a network's step.

    fastcondense bench gradient-matching --network zoo/convnet3_in --ipc 10 --factor 2 --subset 5 --frozen 2

Both step on the same images, real batch and network. The stand-in follows the specification (5.1 and 5.2): one tensor
and one optimiser for all classes, gradients of all parameters, a second graph for the subset, the loss read at once.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from measure import DEVICE, interleaved
from session import Session
from torch import Tensor
from torch.nn import functional as F

from fastcondense.data.jobs import jobs
from fastcondense.recipe import recipe
from fastcondense.recover.gradients import Condensing, read_real
from fastcondense.run import Run
from fastcondense.views.augment import augment, augmentations


def noise_data(folder: Path, num_classes: int, per_class: int) -> None:
    """train.npz and test.npz of random 32-pixel images: the time of a step does not depend on what they show."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_classes), per_class)
    for part in ("train", "test"):
        images = generator.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
        np.savez(folder / f"{part}.npz", images=images, labels=labels)


QUICK = {"ipc": 2, "subset": 1, "frozen": 1, "repeats": 2}


class PublishedStep:
    """A class's step in the way of the published code, on copies of the same images."""

    def __init__(self, mine: Condensing, subset: int, frozen: int):
        self.mine, self.subset, self.frozen = mine, subset, frozen
        self.images = mine.images.flatten(0, 1).clone().requires_grad_()
        self.optimizer = torch.optim.SGD([self.images], mine.rate, momentum=mine.settings.momentum)

    def __call__(self, label: int) -> float:
        mine, settings = self.mine, self.mine.settings
        per_image, ipc = settings.factor**2, mine.job.num_slots
        tiles = mine.formation(self.images[label * ipc : (label + 1) * ipc])
        if self.frozen:
            tiles = torch.cat((tiles[: self.frozen * per_image].detach(), tiles[self.frozen * per_image :]))
        real = mine.real.pixels[mine._real_batch(label, 0)]
        both = torch.cat((mine.run.normalize(real), mine.run.normalize(255 * tiles))).contiguous()
        table = augmentations(mine.augments, settings.augment, label, 0, both.shape[-1]).to(both.device)
        both = augment(both, table, settings.augment).contiguous()
        wanted = [gradient.detach() for gradient in self._gradients(both[: len(real)], label, False)]
        condensed = both[len(real) :]
        sets = [condensed, *([condensed[: self.subset * per_image]] if self.subset else [])]
        loss: Tensor = both.new_zeros(())
        for made in [self._gradients(part, label, True) for part in sets]:
            for a, b in zip(wanted, made, strict=True):
                if a.dim() > 2:
                    loss = loss + (a - b).square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def _gradients(self, images: Tensor, label: int, create_graph: bool) -> tuple[Tensor, ...]:
        net = self.mine.networks.net
        entropy = F.cross_entropy(net(images), torch.full((len(images),), label, device=images.device))
        return torch.autograd.grad(entropy, list(net.parameters()), create_graph=create_graph)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", default="zoo/convnet3_in")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--subset", type=int, default=5)
    parser.add_argument("--frozen", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compiled", action="store_true")


def run(session: Session, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        noise_data(folder, 10, 64)
        found = recipe.load(f"mdc/cifar10-ipc{options.ipc}")
        gradients = replace(
            found.recover.gradients,
            network=options.network,
            factor=options.factor,
            compiled=options.compiled,
            net_images=64,
        )
        settings = replace(found, recover=replace(found.recover, gradients=gradients))
        mine_run = Run(settings, folder / "run", folder, DEVICE)
        mine = Condensing(mine_run, read_real(mine_run), jobs(settings, 10)[0])
        mine.subsets[0].size, mine.subsets[0].learned = options.subset, [options.frozen]
        published = PublishedStep(mine, options.subset, options.frozen)
        variants: dict[str, Callable[[], object]] = {
            "ours": lambda: mine._step(0, 0, False),
            "published": lambda: published(0),
            "network": lambda: mine.networks.train(0, 0),
        }
        timings = interleaved(variants, options.repeats, 1)
    names = ("network", "ipc", "factor", "subset", "frozen", "compiled")
    about = {name: getattr(options, name) for name in names}
    for variant, timing in timings.items():
        ratio = round(timing.median / timings["published"].median, 3)
        print(f"{variant:10} {timing.median:10.1f} ms, {ratio} of published")
        session.add(
            "step of a class",
            variant,
            timing,
            shapes=[(options.ipc, 3, 32, 32)],
            dtype="float32",
            **about,
            ratio_to_published=ratio,
        )
