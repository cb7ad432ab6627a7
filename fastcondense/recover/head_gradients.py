"""Linear gradient matching (LGM, NeurIPS'25): condensed images give a new linear layer the gradient of real ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.jobs import Job
from ..data.real import window_batches
from ..loaders.source import Windowed
from ..rng import Stream
from ..run import Run
from ..views.windows import windows
from .feature_targets import Backbone

_DEVIATION = 0.01  # of a new layer's weights; its bias is 0


def head_gradient(features: Tensor, labels: Tensor, head: Tensor) -> Tensor:
    """Gradient of the mean cross-entropy in a linear layer's weights [K, D] and bias of 0: [K, D + 1].

    (softmax(z W^T) - onehot(y))^T [z, 1] / N for features z [N, D] and labels int64 [N]; differentiable in z.
    """
    error = (features @ head.T).softmax(1) - F.one_hot(labels, len(head))
    return torch.cat((error.T @ features, error.sum(0)[:, None]), 1) / len(features)


class RealViews:
    """The real views of each iteration: `recover.means.real_batch` images of a random order of all, and then another.

    Normalised, [B, 3, S, S], and their classes; they depend on (seed, iteration) alone. (Published: each batch is drawn
    from all images anew.)
    """

    def __init__(self, run: Run):
        self.run, self.size = run, min(run.recipe.recover.means.real_batch, len(run.real.train))
        self.stream = Stream(run.recipe.seed, "recover/real-views")
        self.an_epoch = len(run.real.train) // self.size
        """Batches of an order of all images."""
        self.batches: Iterator[tuple[Tensor, Tensor]] = iter(())
        self.kept: tuple[int, tuple[Tensor, Tensor]] | None = None  # the last iteration's

    def __call__(self, iteration: int) -> tuple[Tensor, Tensor]:
        last = -1 if self.kept is None else self.kept[0]
        if self.kept is None or iteration != last:
            if iteration != last + 1 or iteration % self.an_epoch == 0:
                self.batches = self._rest_of_epoch(iteration)
            self.kept = iteration, next(self.batches)
        return self.kept[1]

    def _rest_of_epoch(self, iteration: int) -> Iterator[tuple[Tensor, Tensor]]:
        run, split = self.run, self.run.real.train
        epoch, place = divmod(iteration, self.an_epoch)
        order = self.stream.part("order").permutation(len(split), epoch)
        parts = [order[k * self.size : (k + 1) * self.size] for k in range(place, self.an_epoch)]
        labels = torch.from_numpy(split.labels).to(run.device)

        def draw(ids: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
            return windows(self.stream, run.recipe.recover, ids, epoch, heights, widths)

        cut = Windowed(run.recipe.dataset.image_size, draw)
        for images, ids in window_batches(split, run.recipe.dataset, parts, cut, run.device):
            yield images, labels[ids]


class HeadGradients:
    """1 - cosine of the gradients that condensed and real features give a new layer, of all classes together.

    The bias's gradient is a part of it. Raises ValueError if the job has not all classes.
    """

    def __init__(self, run: Run, backbone: Backbone, real: RealViews, job: Job):
        num_classes = len(run.real.classes)
        if job.num_classes < num_classes:
            raise ValueError(
                f"recover.means.target gradient needs all {num_classes} classes in a job, which has {job.num_classes}: "
                "recover.classes_per_job 0, and a recover.batch_size of all images"
            )
        self.run, self.backbone, self.real = run, backbone, real
        self.first_slot = job.first_slot
        with torch.no_grad():
            length = backbone(real(0)[0]).shape[1]
        self.head = torch.zeros(num_classes, length, device=run.device)
        self.wanted = torch.zeros(num_classes, length + 1, device=run.device)
        self.labels = torch.arange(num_classes, device=run.device)

    def load(self, job: Job) -> None:
        self.first_slot = job.first_slot

    def refresh(self, iteration: int) -> None:
        """A new layer, and the gradient that the iteration's real views give it."""
        stream = Stream(self.run.recipe.seed, "recover/heads")
        drawn = stream.normal([(iteration, self.first_slot)], self.head.numel(), self.head.device)
        self.head.copy_(_DEVIATION * drawn.view_as(self.head))
        images, labels = self.real(iteration)
        with torch.no_grad():
            self.wanted.copy_(head_gradient(self.backbone(images), labels, self.head))

    def __call__(self, features: Tensor) -> Tensor:
        labels = self.labels[:, None].expand(features.shape[:-1]).flatten()
        made = head_gradient(features.flatten(0, 2), labels, self.head)
        return 1 - F.cosine_similarity(made.flatten(), self.wanted.flatten(), 0)
