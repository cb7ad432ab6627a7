"""What several parts of a recipe share: views of an image, augmentations, precisions."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from .bounds import CountOrZero, Share, Within

Arithmetic = Literal["fp32", "tf32", "bf16"]
"""fp32: IEEE single; tf32: the same, but a GPU's matrix units round their inputs to 10 bits; bf16: weights and maps."""

Precision = Literal["auto", "fp32", "tf32", "bf16"]
"""auto: bf16 where the device multiplies it natively, else tf32 on a GPU and fp32 on a CPU (recipe/precision.py)."""

Pixels = Annotated[int, Within(-65535, 65535)]
"""A distance in an image."""

Operation = Literal["flip", "brightness", "saturation", "contrast", "crop", "scale", "rotate", "cutout"]
"""An operation of differentiable siamese augmentation (Zhao and Bilen, ICML'21)."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """Which random views of an image are taken."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """RandomResizedCrop: range of the window's share of the image's area; (1, 1) takes the whole image."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """RandomResizedCrop: range of width / height."""
    padding: CountOrZero = 0
    """Pixels of zeros around an image, if positive: then RandomCrop of the image's own size, instead of the above. They
    are black but in recover, whose images are normalised."""
    flip: Share = 0.5
    """Probability of a horizontal mirror."""
    roll: tuple[Pixels, Pixels] = (0, 0)
    """Circular shift in rows and in columns, uniform over this range, both ends included."""

    def alone(self) -> Views:
        """These settings without what a part of the recipe says beside them."""
        return Views(**{field.name: getattr(self, field.name) for field in fields(Views)})

    def check(self, where: str, image_size: int) -> None:
        """Raises ValueError if the ranges make no sense, where being what the settings' names begin with."""
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"{where}.crop_scale needs 0 < low <= high <= 1, got {self.crop_scale}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"{where}.crop_ratio needs 0 < low <= high, got {self.crop_ratio}")
        if self.roll[0] > self.roll[1]:
            raise ValueError(f"{where}.roll needs low <= high, got {self.roll}")
        if self.padding > image_size:
            raise ValueError(f"{where}.padding {self.padding} is more than dataset.image_size {image_size}")
