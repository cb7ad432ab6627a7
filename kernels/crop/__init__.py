"""Windowed crop, resize, flip and roll."""

from .operator import crop

__all__ = ["crop"]
