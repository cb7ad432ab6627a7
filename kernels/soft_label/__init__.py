"""The losses of students."""

from .definition import Kind
from .operator import soft_label_loss

__all__ = ["Kind", "soft_label_loss"]
