"""What a teacher sees in condensed and in real images: features of both, and their t-SNE in the plane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..run import Run
from ..teachers.cut import penultimate
from ..teachers.teacher import Teacher
from .findings import real_images

REAL_IMAGES = 30
"""Real images a class that are embedded beside the condensed ones."""
_ITERATIONS, _PERPLEXITY, _BATCH = 500, 30.0, 64


@dataclass(frozen=True)
class ImageFeatures:
    """Features of images, float32 [n, d] by class: what the first teacher has before its classifier, or its logits."""

    condensed: dict[int, np.ndarray]
    real: dict[int, np.ndarray]
    """Features of random training images, in random order: of each class at least as many as condensed ones, if it has
    them."""
    layer: str
    """Name of the teacher's classifier, if what it reads are the features; empty for logits."""


def image_features(run: Run, teacher: Teacher, images: Mapping[tuple[int, int], Tensor]) -> ImageFeatures:
    """Features of condensed images, uint8 [3, S, S] by class and slot, and of random training images of the classes."""
    network, layer = penultimate(teacher)

    def of(pixels: Tensor) -> np.ndarray:
        with torch.no_grad():
            parts = [network(run.normalize(part.to(run.device))) for part in pixels.split(_BATCH)]
        return torch.cat(parts).flatten(1).float().cpu().numpy()

    condensed, real = {}, {}
    for label in sorted({label for label, _ in images}):
        mine = torch.stack([image for (other, _), image in sorted(images.items()) if other == label])
        condensed[label] = of(mine)
        real[label] = of(real_images(run, label, max(REAL_IMAGES, len(mine))))
    return ImageFeatures(condensed, real, layer)


def embed(features: np.ndarray, seed: int) -> np.ndarray | None:
    """The t-SNE of features, float32 [n, 2] (van der Maaten and Hinton, 2008), from their principal components.

    None for fewer than five, or if they are all the same.
    """
    if len(features) < 5 or not np.ptp(features, axis=0).any():
        return None
    from sklearn.manifold import TSNE  # takes seconds to import

    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, max_iter=_ITERATIONS, init="pca", random_state=seed % 2**32).fit_transform(
        features
    )
