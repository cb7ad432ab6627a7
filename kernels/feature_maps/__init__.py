"""The sums over a feature from which its moments follow."""

from .operator import feature_maps

__all__ = ["feature_maps"]
