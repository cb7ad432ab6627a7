"""Retrieved anchors: between stages every image is mixed with the real image of its class that fits it best (RETA).

A class has a pool of real images. Of it, an image o is taken for a condensed image x that minimises
(1 - w) |norm phi(x) - norm phi(o)|^2 + w var_u |grad (G * o)(u)|^2: phi is what a teacher has before its classifier,
G a Gaussian, u a pixel of o at the side of the next stage (dynamic retrieval connection, arXiv 2602.24144, as a note on
it gives the formula). Its second part, a loss of persistent homology, is not here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import vision
from ..data.jobs import Job
from ..data.real import square_batches
from ..networks.precision import arithmetic
from ..rng import Stream
from ..run import Run
from ..teachers.cut import penultimate
from ..teachers.teacher import Teacher
from ..tensor_files import Form, read_kept, write_tensors
from ..workers.work import Items, shared
from .canvas import resized
from .representatives import read_squares
from .schedule import stages

AnchorsOf = Callable[[Job, Tensor, int], Tensor]
"""A job, its images as they are, normalised [N, 3, s, s], the side of the stage ahead -> real images [N, 3, S, S]."""
_BATCH = 100  # images that go through the teacher together: fixed, because rounding depends on it
_SIGMA = 1.0  # of the Gaussian, in pixels


def complexity(images: Tensor) -> Tensor:
    """Variance over the pixels of the squared gradient of smoothed images: [N], of normalised [N, 3, s, s].

    The gradient is of central differences, one-sided at the margin; its square is summed over colours.
    """
    blur = vision.torchvision.transforms.functional.gaussian_blur
    down, across = torch.gradient(blur(images, [7, 7], [_SIGMA, _SIGMA]), dim=(2, 3))
    return (down.square() + across.square()).sum(1).flatten(1).var(1, correction=0)


def fit_complexity(seen: Tensor, features: Tensor, complexities: Tensor, weight: float) -> Tensor:
    """Scores of a pool's images for condensed ones, the less the better: [n, P].

    seen [n, D], features [P, D]: of length 1; complexities: [P]; weight: of complexity.
    """
    distances = torch.cdist(seen, features, compute_mode="donot_use_mm_for_euclid_dist")
    return (1 - weight) * distances.square() + weight * complexities


class RetrievedAnchors:
    """The anchors of jobs, by a teacher and the weight of complexity (RETA's lambda, 0.1).

    Pools, recover.initial.candidates random training images a class (0: all), are seen once and kept in the run's
    folder; workers share that.
    """

    def __init__(self, run: Run, teacher: Teacher, weight: float = 0.1):
        self.run, self.weight = run, weight
        self.features_of, _ = penultimate(teacher)
        self.sides = sorted({side for side, _ in stages(run.recipe)})
        self.folder = run.folder_of(
            "anchors",
            seed=run.recipe.seed,
            candidates=run.recipe.recover.initial.candidates,
            sides=self.sides,
            teacher=[teacher.name, teacher.sha256],
        )
        labels = range(len(run.real.classes))
        work = Items("pools", self.folder, labels, lambda label: self._path(label).exists())
        if not all(map(work.is_finished, labels)):
            for label, _ in shared(run.log, "pools of anchors", work):
                self._make(label)

    def __call__(self, job: Job, images: Tensor, side: int) -> Tensor:
        """See `AnchorsOf`. What an image gets depends on the image and its class alone, not on the others' of a job."""
        device, classes = self.run.device, job.classes().numpy()
        ids = np.empty(job.num_images, dtype=np.int64)
        seen = self._seen(images)
        for label in np.unique(classes):
            pool, rows = self._pool(label, seen.shape[1]), np.flatnonzero(classes == label)
            known = pool["features"].to(device), pool[f"complexity/{side}"].to(device)
            scores = fit_complexity(seen[torch.from_numpy(rows).to(device)], *known, self.weight)
            ids[rows] = pool["ids"].numpy()[scores.argmin(1).cpu().numpy()]
        wanted, which = np.unique(ids, return_inverse=True)
        return self.run.normalize(read_squares(self.run, wanted))[torch.from_numpy(which).to(device)]

    def _seen(self, images: Tensor) -> Tensor:
        """Features of length 1, float32 [N, D], of images at the data set's size."""
        with torch.no_grad(), arithmetic("fp32"):
            return F.normalize(self.features_of(resized(images, self.run.recipe.dataset.image_size)).flatten(1))

    def _pool(self, label: int, length: int) -> dict[str, Tensor]:
        """A class's pool, as `_make` has written it. Raises ValueError for a file that cannot be one."""
        path = self._path(label)
        forms: dict[str, Form] = {"ids": (torch.int64, [-1]), "features": (torch.float32, [-1, length])}
        pool = read_kept(path, forms | {f"complexity/{side}": (torch.float32, [-1]) for side in self.sides})
        if len(sizes := {len(one) for one in pool.values()}) > 1 or 0 in sizes:
            raise ValueError(
                f"{path} is not what a run keeps there; remove it: it is of no or of differing numbers of images"
            )
        self.run.real.train.check_class(pool["ids"].numpy(), label, path)
        return pool

    def _make(self, label: int) -> None:
        """Writes a class's pool: ids [P], features [P, D], complexity of each side [P]."""
        run, members = self.run, self.run.real.train.of_class(label)
        count = run.recipe.recover.initial.candidates or len(members)
        order = Stream(run.recipe.seed, "recover/anchors").permutation(len(members), label)[:count]
        ids, features, complexities = [], [], {side: list[Tensor]() for side in self.sides}
        batches = square_batches(run.real.train, run.recipe.dataset, run.device, _BATCH, ids=np.sort(members[order]))
        for pixels, read in batches:
            images = run.normalize(pixels)
            ids.append(read)
            features.append(self._seen(images))
            for side, found in complexities.items():
                found.append(complexity(resized(images, side)))
        run.report_skipped(run.real.train)
        if not ids:
            raise ValueError(f"no training image of class {run.real.classes[label]!r} can be read to be an anchor")
        tensors = {"ids": torch.cat(ids), "features": torch.cat(features)}
        tensors |= {f"complexity/{side}": torch.cat(found) for side, found in complexities.items()}
        write_tensors(self._path(label), {name: one.cpu() for name, one in tensors.items()}, {})

    def _path(self, label: int) -> Path:
        return self.folder / f"class-{label:05d}.safetensors"
