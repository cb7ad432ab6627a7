"""Moments of the patches of a resized feature."""

from .operator import needs_neighbours, patch_moments

__all__ = ["needs_neighbours", "patch_moments"]
