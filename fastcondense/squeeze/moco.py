"""Momentum contrast: MoCo (He et al., CVPR'20) with the head and the views of MoCo v2 (Chen et al., 2020)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..networks.encoders import encode, feature_size, follow
from ..recipe.settings import MoCo

_FEATURES = 128  # length of the vectors that are compared, MoCo's


def contrast(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """-log softmax of a query's cosine similarity with its key, among those with its key and the queue's (InfoNCE).

    queries, keys: [B, D] of any length; queue: [K, D] of length one. Returns [B]; no gradient flows to keys and queue.
    Equation 1 of MoCo.
    """
    queries, keys = F.normalize(queries), F.normalize(keys).detach()
    positive = (queries * keys).sum(1, keepdim=True)
    similarities = torch.cat((positive, queries @ queue.detach().T), 1) / temperature
    return similarities.logsumexp(1) - similarities[:, 0]


class MomentumContrast(nn.Module):
    """A query encoder in training, which is what is kept, its momentum copy for keys, and the queue of the last keys.

    forward(views of `TwoViews`, [B, 2, 3, S, S]) -> losses float32 [B]. A forward in training mode is a step: the key
    encoder follows, and the batch's keys replace the oldest of the queue.
    """

    queue: Tensor
    oldest: Tensor
    decay: Tensor

    def __init__(self, net: nn.Module, classifier: str, settings: MoCo, parts: int = 1):
        """Takes `net` over: a head of two layers replaces its classifier. Draws from torch's generator."""
        super().__init__()
        size = feature_size(net, classifier)
        head = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, _FEATURES))
        net.set_submodule(classifier, head)
        self.query, self.key = net, copy.deepcopy(net).requires_grad_(False)
        self.settings, self.parts = settings, parts
        self.register_buffer("queue", F.normalize(torch.randn(settings.queue, _FEATURES)))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))
        self.register_buffer("decay", torch.tensor(settings.decay), persistent=False)

    def forward(self, views: Tensor) -> Tensor:
        queries = encode(self.query, views[:, 0], self.parts)
        with torch.no_grad():
            if self.training:
                follow(self.key, self.query, self.decay)
            # The parts of a batch of keys are others than those of its queries: statistics give no answer away.
            order = torch.randperm(len(views), device=views.device) if self.parts > 1 else None
            keys = encode(self.key, views[:, 1] if order is None else views[order, 1], self.parts)
            keys = F.normalize(keys if order is None else keys[order.argsort()])
        with torch.autocast(views.device.type, enabled=False):
            losses = contrast(queries, keys, self.queue.clone(), self.settings.temperature)
        if self.training:
            self.enqueue(keys)
        return losses

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Puts keys [B, D] in place of the oldest ones; B is at most the queue's length."""
        at = (self.oldest + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue.index_copy_(0, at, keys)
        self.oldest.copy_((self.oldest + len(keys)) % len(self.queue))
