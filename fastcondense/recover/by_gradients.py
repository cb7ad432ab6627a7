"""Recover by gradients: condensed images give networks in training the gradients that real images do (IDC, MDC).

A job's images depend on the recipe, the seed, the job and the real images. Classes meet in the networks and in the
choice of the subset alone; so without subsets jobs of some classes give what one job of all of them does.
"""

from __future__ import annotations

import functools
import json

import numpy as np
import torch
from torch import Tensor

from ..data.jobs import Job
from ..data.real import squares
from ..networks.precision import arithmetic
from ..recipe.gradients import MOST_TILES
from ..rng import Stream
from ..run import Run
from ..sets.record import Record
from ..views.augment import augment, augmentations
from .engine import Recoverer
from .formation import Formation
from .gradient_matching import FeatureDistances, GradientMatching
from .learnable_subset import LearnableSubset
from .matched_networks import MatchedNetworks, RealImages
from .unfinished import State


def read_real(run: Run) -> RealImages:
    """All training images as the evaluation transform sees them, on the device of the run."""
    pixels, ids = squares(run.real.train, run.recipe.dataset, run.device)
    run.report_skipped(run.real.train)
    labels = run.real.train.labels[ids.numpy()]
    members = [np.flatnonzero(labels == label) for label in range(len(run.real.classes))]
    return RealImages(pixels.to(run.device), torch.from_numpy(labels).to(run.device), members)


class ByGradients(Recoverer):
    """Gradients that images give a network, matched with those of real ones.

    The images of a job are float32 [classes, slots, 3, S, S] with pixels in 0 ... 1. Losses are those of an iteration,
    averaged over classes and sweeps: total, 0, total. real: what to match, if not the run's training images. Raises
    ValueError if there are subsets and a job has not all classes.
    """

    def __init__(self, run: Run, real: RealImages | None = None):
        super().__init__(run.recipe, run.device)
        self.run, self.settings = run, run.recipe.recover.gradients
        self.levels = functools.partial(torch.clamp, min=0, max=255)
        with arithmetic(run.recipe.recover.precision):
            self.real = real or read_real(run)

    def begin(self, job: Job) -> None:
        num_classes = len(self.real.members)
        if self.settings.subsets and job.num_classes < num_classes:
            raise ValueError(
                f"recover.gradients.subsets needs all {num_classes} classes in a job, which has "
                f"{job.num_classes}: recover.classes_per_job 0, and a recover.batch_size of all images"
            )
        self.load(job)

    def load(self, job: Job) -> None:
        """Makes the beginning of a job, of whichever classes."""
        run, recipe, settings = self.run, self.recipe, self.settings
        self.job = job
        self.labels = torch.arange(job.first_class, job.first_class + job.num_classes, device=run.device)
        self.formation = Formation(settings, job.num_slots, recipe.dataset.image_size)
        self.rate = recipe.recover.lr * job.num_slots / 10
        purpose = f"gradients/slot-{job.first_slot}"
        self.order, self.augments, self.picks = (
            Stream(recipe.seed, f"{purpose}/{name}") for name in ("real", "augment", "tiles")
        )
        self.orders: dict[int, tuple[int, np.ndarray]] = {}
        self.networks = MatchedNetworks(settings, self.real, run.normalize, recipe.seed, f"{purpose}/networks")
        self.matching = GradientMatching(self.networks.net, settings.metric)
        self.distances = FeatureDistances(self.networks.net, settings.layer) if settings.subsets else None
        self.subset = LearnableSubset(settings.period) if settings.subsets else None
        self.images = self._initial()
        self.velocity = torch.zeros_like(self.images)
        self.losses = torch.zeros(recipe.recover.iterations, 3)
        self.iteration = 0
        """The one that is made."""

    def advance(self, iteration: int) -> None:
        """An outer iteration: a network, and `inner` sweeps over the classes."""
        settings, self.iteration = self.settings, iteration
        self.images.clamp_(0, 1)
        self.networks.begin(iteration)
        if self.subset is not None:
            self.subset.begin(iteration)
        is_measured = self.subset is not None and self.subset.is_measured(iteration)
        num_classes, total = self.job.num_classes, torch.zeros((), device=self.device)
        measured = torch.zeros(num_classes, self.job.num_slots - 1, device=self.device)
        for sweep in range(settings.inner):
            for row in range(num_classes):
                loss, distances = self._step(row, sweep, is_measured)
                total += loss
                measured[row] += distances
            self.networks.train(iteration, sweep)
        if self.subset is not None and is_measured:
            means = (measured.double() / settings.inner).mean(0)
            means = means.float().round(decimals=2) if settings.is_rounded else means
            self.subset.choose(means.tolist(), iteration)
        mean_loss = float(total) / (settings.inner * num_classes)
        self.losses[iteration] = torch.tensor([mean_loss, 0.0, mean_loss])

    def state(self) -> State:
        subset = json.dumps(self.subset and vars(self.subset)).encode()
        tensors = {"images": self.images, "velocity": self.velocity, "losses": self.losses}
        return tensors | {"subset": torch.tensor(list(subset), dtype=torch.uint8)}

    def restore(self, tensors: State) -> None:
        for name, mine in (("images", self.images), ("velocity", self.velocity), ("losses", self.losses)):
            mine.copy_(tensors[name])
        if self.subset is not None:
            self.subset = LearnableSubset.restored(
                json.loads(bytes(tensors["subset"].tolist())), self.job.num_slots - 1
            )

    def made(self) -> tuple[Tensor, Tensor, Record]:
        return 255 * self.images.flatten(0, 1), self.losses, Record()

    def _step(self, row: int, sweep: int, is_measured: bool) -> tuple[Tensor, Tensor]:
        """A class's step; returns its loss, and the feature distances of its subsets, 0 if they are not measured."""
        settings, label = self.settings, self.job.first_class + row
        number = self.iteration * settings.inner + sweep
        subset = self.subset
        size, frozen = (subset.size, subset.frozen) if subset else (0, 0)
        if settings.momentum_shared:
            self._coast(row, label)
        images = self.images[row].detach().requires_grad_()
        table = augmentations(self.augments, settings.augment, label, number, images.shape[-1]).to(self.device)

        def views_of(pixels: Tensor) -> Tensor:
            return augment(self.run.normalize(pixels), table, settings.augment).contiguous()

        tiles = views_of(255 * self.formation(images))
        real = views_of(self.real.pixels[self._real_batch(label, number)])
        groups, terms, live = self._groups(label, number, size, frozen)
        distances = torch.zeros(self.job.num_slots - 1, device=self.device)
        if is_measured and self.distances is not None:
            distances = self.distances(real, tiles.detach(), self.formation.levels.to(self.device), self.job.num_slots)
        parts = [(tiles if at in live else tiles.detach())[ids] for at, ids in enumerate(groups)]
        loss = self.matching(real, parts, self.labels[row : row + 1], terms)
        (gradient,) = torch.autograd.grad(loss, images)
        self._advance(row, label, gradient, frozen)
        return loss.detach(), distances

    def _groups(
        self, label: int, number: int, size: int, frozen: int
    ) -> tuple[list[Tensor], list[list[int]], list[int]]:
        """Tiles that are taken together, [b_g] each; the groups of each term, the set and the subset; those not frozen.

        Of more than MOST_TILES, the set's and the subset's are drawn, by one order of all.
        """
        levels, most = self.formation.levels.numpy(), MOST_TILES
        order = np.arange(len(levels))
        if len(levels) > most:
            order = self.picks.permutation(len(levels), number * len(self.real.members) + label)
        is_in = np.zeros((2, len(levels)), dtype=bool)
        is_in[0, order[:most]] = True
        is_in[1, order[levels[order] <= size][:most]] = True
        kinds = is_in[0] + 2 * is_in[1] + 4 * (levels <= frozen)
        found = [kind for kind in range(8) if kind % 4 and (kinds == kind).any()]
        groups = [torch.from_numpy(np.flatnonzero(kinds == kind)).to(self.device) for kind in found]
        terms = [[at for at, kind in enumerate(found) if kind & bit] for bit in (1, 2)]
        return groups, [term for term in terms if term], [at for at, kind in enumerate(found) if kind < 4]

    def _advance(self, row: int, label: int, gradient: Tensor, frozen: int) -> None:
        """One step of SGD with momentum."""
        images, velocity = self.images[row], self.velocity[row]
        velocity.mul_(self.settings.momentum).add_(gradient)
        if self.settings.momentum_shared:
            images.sub_(velocity, alpha=self.rate)
            self._coast(row, len(self.real.members) - 1 - label)
            return
        if frozen:
            velocity.masked_fill_(self.formation.frozen_pixels(frozen).to(self.device), 0)
        images.sub_(velocity, alpha=self.rate)

    def _coast(self, row: int, steps: int) -> None:
        """Applies what `steps` steps of other classes do to a class: its velocity decays and moves it."""
        momentum = self.settings.momentum
        travelled = sum(momentum**k for k in range(1, steps + 1))
        self.images[row].sub_(self.velocity[row], alpha=self.rate * travelled)
        self.velocity[row].mul_(momentum**steps)

    def _real_batch(self, label: int, number: int) -> Tensor:
        """Batch `number` of a class's real images: full batches of one pass after another."""
        members = self.real.members[label]
        size = min(self.settings.real_batch, len(members))
        which, place = divmod(number, len(members) // size)
        batch = members[self._order(label, which)[place * size : (place + 1) * size]]
        return torch.from_numpy(batch).to(self.device)

    def _order(self, label: int, which: int) -> np.ndarray:
        """The order of a class's real images in pass number `which`; the last of each class is kept."""
        if self.orders.get(label, (-1,))[0] != which:
            count, num_classes = len(self.real.members[label]), len(self.real.members)
            self.orders[label] = which, self.order.permutation(count, which * num_classes + label)
        return self.orders[label][1]

    def _initial(self) -> Tensor:
        """Mosaics of each class's first or random images, [classes, slots, 3, S, S]."""
        recipe, job, settings = self.recipe, self.job, self.settings
        count = job.num_slots * settings.factor**2
        stream, classes = Stream(recipe.seed, "gradients/initial"), self.labels.tolist()
        made = []
        for label in classes:
            members = self.real.members[label]
            order = members if settings.initial == "first" else members[stream.permutation(len(members), label)]
            places = (job.first_slot * settings.factor**2 + np.arange(count)) % len(members)
            pictures = self.real.pixels[torch.from_numpy(order[places]).to(self.device)]
            made.append(self.formation.mosaic(pictures.float() / 255))
        return torch.stack(made)
