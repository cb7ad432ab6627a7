"""The networks whose gradients are matched: a new one an iteration, and its training on real images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.real import Normalization, split_batches
from ..networks import zoo
from ..recipe.gradients import Gradients
from ..rng import Stream
from ..views.augment import augment, augmentations
from ..views.boxes import cutmix_boxes

_BATCH = 64  # real images that a network is trained on together, IDC's


class RealImages(NamedTuple):
    """Pixels uint8 [N, 3, S, S] and labels int64 [N] on the device; the samples of each class, on the host."""

    pixels: Tensor
    labels: Tensor
    members: list[np.ndarray]


class _Streams(NamedTuple):
    order: Stream
    augment: Stream
    partners: Stream
    mix: Stream
    lam: Stream

    @staticmethod
    def of(seed: int, purpose: str) -> _Streams:
        return _Streams(*(Stream(seed, f"{purpose}/{name}") for name in _Streams._fields))


class MatchedNetworks:
    """One network after another, in one place, each a function of (seed, iteration) alone: jobs meet the same ones.

    Their maps are planes, not channels_last: instance norms of pixels that lie together are much faster.
    """

    def __init__(self, settings: Gradients, real: RealImages, normalize: Normalization, seed: int, purpose: str):
        self.settings, self.real, self.normalize = settings, real, normalize
        self.init = Stream(seed, f"{purpose}/init")
        self.training, self.pretraining = (_Streams.of(seed, f"{purpose}/{name}") for name in ("train", "pretrain"))
        self.device = real.pixels.device
        self.net = self._fresh(0)
        self.optimizer = self._optimizer()
        self.last_pass: tuple[tuple[_Streams, int] | None, list[np.ndarray]] = (None, [])

    def begin(self, iteration: int) -> None:
        """Puts the network of an iteration in place, pretrained if the settings say so."""
        self.net.load_state_dict(self._fresh(iteration).state_dict())
        self.optimizer = self._optimizer()
        self._pretrain(iteration)

    def train(self, iteration: int, sweep: int) -> None:
        """Trains on the `net_images` real images that come after a sweep."""
        num_batches = -(-self.settings.net_images // _BATCH)
        first, num_all = sweep * num_batches, self.settings.inner * num_batches
        per_pass = len(split_batches(np.arange(len(self.real.labels)), _BATCH))
        passes = -(-num_all // per_pass)
        batches: list[np.ndarray] = []
        while len(batches) < num_batches:
            which, begin = divmod(first + len(batches), per_pass)
            batches += self._pass(self.training, iteration * passes + which)[begin:][: num_batches - len(batches)]
        self._train(self.training, batches, iteration * num_all + first)

    def _pretrain(self, number: int) -> None:
        for epoch in range(self.settings.pretrain_epochs):
            which = number * self.settings.pretrain_epochs + epoch
            batches = self._pass(self.pretraining, which)
            self._train(self.pretraining, batches, which * len(batches))

    def _fresh(self, iteration: int) -> nn.Module:
        with self.init.torch_generator(iteration):
            return zoo.build(self.settings.network, len(self.real.members)).to(self.device)

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)  # IDC's

    def _pass(self, streams: _Streams, number: int) -> list[np.ndarray]:
        """The batches of one pass over all real images; the last is kept."""
        if self.last_pass[0] != (streams, number):
            order = streams.order.permutation(len(self.real.labels), number)
            self.last_pass = (streams, number), split_batches(order, _BATCH)
        return self.last_pass[1]

    def _train(self, streams: _Streams, batches: list[np.ndarray], first: int) -> None:
        """One step of SGD a batch; what is drawn in step number `first` and the next depends on the number alone."""
        settings, size = self.settings, self.real.pixels.shape[-1]
        steps = first + np.arange(len(batches))
        u_mixed, u_row, u_column, _ = streams.mix.uniform(steps)
        lam = np.where(u_mixed < settings.net_cutmix, streams.lam.beta(1.0, steps), 1.0)
        boxes = cutmix_boxes(lam, u_row, u_column, size).tolist()
        for step, ids, (top, bottom, left, right) in zip(steps.tolist(), batches, boxes, strict=True):
            operations = settings.net_augment
            table = augmentations(streams.augment, operations, ids, step, size, np.full(len(ids), step))
            samples = torch.from_numpy(ids).to(self.device)
            labels = self.real.labels[samples]
            views = augment(self.normalize(self.real.pixels[samples]), table.to(self.device), operations).contiguous()
            others = torch.from_numpy(streams.partners.permutation(len(ids), step)).to(self.device)
            share = 1 - (bottom - top) * (right - left) / size**2
            if share < 1:
                mixed = views.clone()
                mixed[:, :, top:bottom, left:right] = views[others, :, top:bottom, left:right]
                views = mixed
            logits = self.net(views)
            loss = share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, labels[others])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
