"""Frozen BatchNorm with the moments of its input and output."""

from .definition import ACTIVATIONS, Activation
from .operator import frozen_batch_norm

__all__ = ["ACTIVATIONS", "Activation", "frozen_batch_norm"]
