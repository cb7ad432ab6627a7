"""One Adam step on the images and the clip."""

from .operator import pixel_adam

__all__ = ["pixel_adam"]
