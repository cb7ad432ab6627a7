"""What a machine sees and answers on probe views of a condensed set: a short text that tells whether another agrees.

Probes are views as students are trained on, mixed and in their groups: of the first batches of epoch 0 and of the last
epoch. Logits of other machines are never bit-equal, so they are compared within tolerances; windows, partners and boxes
have to be the same integers everywhere.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..recipe.settings import Optimization
from ..records import Fingerprint
from .labels import LabelSource
from .view_tables import ViewTable
from .views import ReplayedViews

PROBES = 256
TOP = 5
PIXEL_TOLERANCE = 2e-3
"""Of a view's mean and roughness, in normalised units; another resize kernel is far above."""
MATCH, DRIFT = 1e-3, 0.2
"""Largest difference of a logit, in units of the largest logits' root mean square: float32 elsewhere, and bfloat16."""


class Probe(NamedTuple):
    """The hash of what P views show; their mean and roughness, float32 [P, 2]; the teachers' mean logits [P, classes];
    and the class of each, int64 [P]. All on the host."""

    tables: str
    pixels: Tensor
    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Verdict:
    """match, drift (the same labels but for rounding) or mismatch, and why in words."""

    kind: Literal["match", "drift", "mismatch"]
    reason: str


def probe(views: ReplayedViews, source: LabelSource, train: Optimization) -> Probe:
    """Looks at the probe views of a set and labels them. Raises ValueError for a source of hard labels."""
    digest, pixels, logits, labels = hashlib.sha256(), list[Tensor](), list[Tensor](), list[Tensor]()
    for epoch in sorted({0, train.epochs - 1}):
        left = PROBES // 2
        for span in views.spans(epoch, train):
            count = min(left, span.end - span.begin)
            _update(digest, views.table([span]).rows(0, count))
            (batch,) = views.batches([span])
            wanted = source(batch)
            if wanted.logits is None:
                raise ValueError("hard labels have no logits to take a fingerprint of")
            pixels.append(_describe(batch.images[:count]))
            logits.append(wanted.logits.mean(0)[:count].float().cpu())
            labels.append(batch.labels[:count].cpu())
            left -= count
            if not left:
                break
    return Probe(digest.hexdigest(), torch.cat(pixels), torch.cat(logits), torch.cat(labels))


def fingerprint(seen: Probe) -> Fingerprint:
    """What is kept of a probe: a JSON-like tree."""
    values, classes = seen.logits.topk(min(TOP, seen.logits.shape[1]), dim=1)
    return {
        "tables": seen.tables,
        "pixels": [(mean, roughness) for mean, roughness in _rounded(seen.pixels)],
        "classes": classes.tolist(),
        "logits": _rounded(values),
    }


def compare(kept: Fingerprint, seen: Probe) -> Verdict:
    """Whether another machine's fingerprint holds here, from what must be equal to what may drift."""
    if kept["tables"] != seen.tables:
        return Verdict("mismatch", "windows, partners or boxes differ: another seed, set size, setting or generator")
    pixels, classes, logits = torch.tensor(kept["pixels"]), torch.tensor(kept["classes"]), torch.tensor(kept["logits"])
    if pixels.shape != seen.pixels.shape:
        return Verdict("mismatch", f"the fingerprint has {len(pixels)} views, this set {len(seen.pixels)}")
    worst = float((pixels - seen.pixels).abs().max())
    if not worst <= PIXEL_TOLERANCE:
        reason = f"views look different (by up to {worst:.4f}): another crop or resize kernel, normalisation or image"
        return Verdict("mismatch", reason)
    scale = logits.square().mean().sqrt()
    errors = (seen.logits.gather(1, classes) - logits).abs() / scale
    changed = 100 * float((seen.logits.argmax(1) != classes[:, 0]).float().mean())
    largest, mean = float(errors.max()), float(errors.mean())
    figures = (
        f"logits differ by {mean:.1e} on average and {largest:.1e} at most, {changed:.1f} % of top classes changed"
    )
    if largest <= MATCH:
        return Verdict("match", figures)
    if largest <= DRIFT:
        return Verdict("drift", figures)
    return Verdict("mismatch", f"{figures}: other weights, another order of classes, or other layers in training mode")


def _update(digest: Any, table: ViewTable) -> None:
    integers = [table.ids, table.partners, table.windows, table.partner_windows]
    integers += [] if table.boxes is None else [table.boxes]
    # a share comes from a special function, whose last bits are not the same everywhere
    for column in (*integers, (table.share * 10_000).round()):
        digest.update(column.long().contiguous().numpy().tobytes())


def _describe(views: Tensor) -> Tensor:
    """Mean, and mean absolute difference of horizontal neighbours, of each view: float32 [B, 2]."""
    views = views.float()
    roughness = (views[..., 1:] - views[..., :-1]).abs()
    return torch.stack((views.mean((1, 2, 3)), roughness.mean((1, 2, 3))), 1).cpu()


def _rounded(values: Tensor) -> list[list[float]]:
    return [[float(f"{value:.5g}") for value in row] for row in values.tolist()]
