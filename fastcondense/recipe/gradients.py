"""The settings of gradient matching: IDC's formation, networks and steps; MDC's subsets (see recover_settings.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..views.augment import Operation


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Condensed images give a network the gradients that real ones do (DC, DSA, IDC), at every size of the set (MDC).

    An iteration is a new network and `inner` sweeps: each changes the images of all classes, one class after another
    by recover.lr ipc / 10, and then trains the network on real images. recover.iterations counts networks.
    """

    network: str = "zoo/convnet3_in"
    """As squeeze.teachers; without BatchNorm, through which the images of a batch would see each other."""
    inner: int = 100
    factor: int = 2
    """Tiles a side of a stored image: each is enlarged, and is an image of its own to networks and students."""
    formation: Literal["single", "multi", "bound"] = "single"
    """single: all images have factor^2 tiles. multi: they are seen with 1, 4, ... factor^2 tiles each. bound: a class's
    first images have factor^2, others fewer, such that there are no more than syn_batch; students see single."""
    layout: Literal["tile-major", "canvas-major"] = "tile-major"
    """Which tiles a subset of n images has. tile-major: the first n factor^2 when those of one place come before those
    of the next, as published; canvas-major: those of the first n stored images, which are a set of their own. Where
    factor does not divide the side, tile-major cuts tiles beyond the edge, grey there, canvas-major unequal ones."""
    initial: Literal["first", "random", "noise"] = "first"
    """Tiles are a class's first images in the data set's order as published, or random ones; noise: around grey."""
    metric: Literal["mse", "l1"] = "mse"
    """Sum of squared, or of absolute differences of the gradients of all convolutions' weights."""
    real_batch: int = 64
    """Real images of the class in a step."""
    syn_batch: int = 128
    """Tiles of a class in a step, at most; of more, other random ones in each step, of the subset as of the set."""
    augment: tuple[Operation, ...] = ("brightness", "saturation", "contrast", "crop", "cutout")
    """Differentiable augmentations, drawn once a step for its real and condensed images alike."""
    momentum: float = 0.5
    momentum_shared: bool = True
    """Whether a class's step also moves the images of all others by their momentum, frozen ones too, as one optimiser
    does in the published code. About the same: false with momentum 0 and twice the recover.lr; frozen pixels stay."""
    subsets: Literal["none", "shared", "class-wise"] = "none"
    """MDC's adaptive subset loss: one of the sizes below ipc is matched too, the most learnable, and those below it
    that were before are frozen. One for all classes, or one a class."""
    period: int = 100
    """Iterations between choices of the most learnable subset."""
    is_rounded: bool = True
    """Feature distances are rounded to two decimals before they are compared, as published."""
    layer: str = "last_pool"
    """Module of the network whose input gives the features."""
    net_images: int = 2000
    """Real images that a network is trained on after each sweep."""
    net_batch: int = 64
    net_augment: tuple[Operation, ...] = ("brightness", "saturation", "contrast", "crop")
    """One draw an image."""
    net_cutmix: float = 0.5
    """Probability that a batch is mixed, with one box."""
    net_lr: float = 0.01
    net_momentum: float = 0.9
    net_weight_decay: float = 5e-4
    pretrain_epochs: int = 0
    """Passes over all real images before a network's first sweep."""
    pool: int = 0
    """Networks that are pretrained once, one of which each iteration begins with; 0: a new one each time."""
    kept_iterations: int = 1
    """Iterations in a row that go on with one network."""
    compiled: bool = False
    """torch.compile the networks: some minutes first, then faster; results differ by rounding alone."""

    def check(self, num_slots: int) -> None:
        """Raises ValueError for counts that make no sense; num_slots: images of a class in a job."""
        counts = {
            "inner": (self.inner, 1),
            "factor": (self.factor, 1),
            "real_batch": (self.real_batch, 1),
            "syn_batch": (self.syn_batch, 1),
            "period": (self.period, 1),
            "net_images": (self.net_images, 0),
            "net_batch": (self.net_batch, 1),
            "pretrain_epochs": (self.pretrain_epochs, 0),
            "pool": (self.pool, 0),
            "kept_iterations": (self.kept_iterations, 1),
        }
        for name, (value, least) in counts.items():
            if value < least:
                raise ValueError(f"recover.gradients.{name} must be at least {least}, got {value}")
        if not 0 <= self.momentum < 1 or not 0 <= self.net_cutmix <= 1:
            raise ValueError("recover.gradients needs momentum in [0, 1) and net_cutmix in [0, 1]")
        if self.formation == "bound" and self.syn_batch < num_slots:
            raise ValueError(
                f"recover.gradients.formation bound needs syn_batch {num_slots} or more, got {self.syn_batch}"
            )
