"""The settings of gradient matching: IDC's formation, networks and steps; MDC's subsets (see recover.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .bounds import Count, CountOrZero, Decay, Share
from .shared import Operation

MOST_TILES = 128  # tiles of a class in a step, IDC's


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Condensed images give a network the gradients that real ones do (DC, DSA, IDC), at every size of the set (MDC).

    An iteration is a new network and `inner` sweeps: each changes the images of all classes, one class after another
    by recover.lr ipc / 10, and then trains the network on real images. recover.iterations counts networks.
    """

    network: str = "zoo/convnet3_in"
    """Network whose gradients are matched, named as squeeze.teachers are; without BatchNorm, through which the images
    of a batch would see each other."""
    inner: Count = 100
    """Sweeps over the classes with a network."""
    factor: Count = 2
    """Tiles a side of a stored image: each is enlarged, and is an image of its own to networks and students."""
    formation: Literal["single", "bound"] = "single"
    """single: all images have factor^2 tiles. bound: a class's first images have factor^2, others fewer, such that
    there are no more than 128; students see single."""
    layout: Literal["tile-major", "canvas-major"] = "tile-major"
    """Which tiles a subset of n images has. tile-major: the first n factor^2 when those of one place come before those
    of the next, as published; canvas-major: those of the first n stored images, which are a set of their own. Where
    factor does not divide the side, tile-major cuts tiles beyond the edge, grey there, canvas-major unequal ones."""
    initial: Literal["first", "random"] = "first"
    """Tiles are a class's first images in the data set's order as published, or random ones."""
    metric: Literal["mse", "l1"] = "mse"
    """Sum of squared, or of absolute differences of the gradients of all convolutions' weights."""
    real_batch: Count = 64
    """Real images of the class in a step."""
    augment: tuple[Operation, ...] = ("brightness", "saturation", "contrast", "crop", "cutout")
    """Differentiable augmentations, drawn once a step for its real and condensed images alike."""
    momentum: Decay = 0.5
    """Momentum of the images' SGD."""
    momentum_shared: bool = True
    """Whether a class's step also moves the images of all others by their momentum, frozen ones too, as one optimiser
    does in the published code. About the same: false with momentum 0 and twice the recover.lr; frozen pixels stay."""
    subsets: bool = False
    """MDC's adaptive subset loss: one of the sizes below ipc is matched too, the most learnable, and those below it
    that were before are frozen."""
    period: Count = 100
    """Iterations between choices of the most learnable subset."""
    is_rounded: bool = True
    """Feature distances are rounded to two decimals before they are compared, as published."""
    layer: str = "last_pool"
    """Module of the network whose input gives the features."""
    net_images: CountOrZero = 2000
    """Real images that a network is trained on after each sweep."""
    net_augment: tuple[Operation, ...] = ("brightness", "saturation", "contrast", "crop")
    """Differentiable augmentations of the real images that a network is trained on, one draw an image."""
    net_cutmix: Share = 0.5
    """Probability that a batch is mixed, with one box."""
    pretrain_epochs: CountOrZero = 0
    """Passes over all real images before a network's first sweep."""

    def check(self, num_slots: int) -> None:
        """Raises ValueError for settings that do not go together; num_slots: images of a class in a job."""
        if self.formation == "bound" and num_slots > MOST_TILES:
            raise ValueError(
                f"recover.gradients.formation bound takes jobs of up to {MOST_TILES} images a class, got {num_slots}"
            )
