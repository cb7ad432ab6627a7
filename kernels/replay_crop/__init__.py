"""Views of a resident uint8 set."""

from .operator import replay_crop

__all__ = ["replay_crop"]
