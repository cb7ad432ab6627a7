"""Frozen BatchNorm, ReLU and max-pooling with moments."""

from .operator import frozen_batch_norm_pool

__all__ = ["frozen_batch_norm_pool"]
