"""The rows of stored labels: logits as float16, all of a view's or the largest and what the other classes share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

Shapes = Mapping[str, tuple[tuple[int, ...], Any]]
"""Shapes and dtypes of arrays, by name."""


def array_shapes(num_views: int, num_classes: int, top_k: int) -> Shapes:
    """Shapes and dtypes of the arrays."""
    if not top_k:
        return {"logits": ((num_views, num_classes), np.float16)}
    return {
        "classes": ((num_views, top_k), np.uint16 if num_classes <= 1 << 16 else np.uint32),
        "logits": ((num_views, top_k), np.float16),
        "rest": ((num_views,), np.float16),
    }


def compress(logits: Tensor, top_k: int, temperature: float | None) -> dict[str, Tensor]:
    """The rows of the arrays for logits float32 [B, classes]. Raises ValueError if float16 cannot hold them."""
    if not top_k:
        rows = {"logits": logits.half()}
    else:
        largest, classes = logits.topk(top_k, 1)
        num_others = logits.shape[1] - top_k
        if temperature is None:
            rest = logits.scatter(1, classes, 0.0).sum(1) / num_others
        else:
            others = logits.scatter(1, classes, -math.inf) / temperature
            rest = temperature * (others.logsumexp(1) - math.log(num_others))
        rows = {"classes": classes, "logits": largest.half(), "rest": rest.half()}
    for name, values in rows.items():
        if name != "classes" and not bool(values.isfinite().all()):
            raise ValueError(f"logits up to {float(logits.abs().max()):g} cannot be stored in float16")
    return rows


def expand(classes: Tensor, logits: Tensor, rest: Tensor, num_classes: int) -> Tensor:
    """Logits float32 [B, num_classes] of rows that `compress` made of the k largest ones."""
    return rest.float()[:, None].repeat(1, num_classes).scatter_(1, classes.long(), logits.float())
