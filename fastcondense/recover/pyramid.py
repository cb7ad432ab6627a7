"""Images as sums of levels of growing resolution, in decorrelated colours, through a sigmoid (LGM, NeurIPS'25).

image = sigmoid(2 M sum_r up(p_r)), p_r: [N, 3, r, r] for r = 1, 2, 4, ..., finest; up: bilinear, to the finest side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.jobs import Job
from ..kernels.pixel_adam import pixel_adam
from ..recipe.recipe import Recipe
from ..rng import Stream
from .unfinished import State

COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
"""Rows red, green and blue; columns the directions in which the colours of natural images vary, strongest first."""


def enlargement(source: int, side: int, device: torch.device | str = "cpu") -> Tensor:
    """The matrix [side, source] of bilinear interpolation along an axis, as F.interpolate has it (no antialiasing).

    A product with it has an adjoint whose sums have a fixed order on a GPU, which F.interpolate's has not.
    """
    if source == side:
        return torch.eye(side, device=device)
    return F.interpolate(torch.eye(source)[None], side, mode="linear", align_corners=False)[0].T.to(device)


class LevelPyramid:
    """The levels of a job's images and their optimiser, on static buffers.

    It begins with the level of one pixel. When the next comes in, as normal noise, the m before it are multiplied by
    m / (m + 1) and it by 1 / (m + 1), so that the sum stays as large; and Adam begins anew for all of them. A level
    that is not in yet is masked, so that an iteration is the same operations throughout.
    """

    def __init__(self, recipe: Recipe, num_images: int, device: torch.device):
        settings, size = recipe.recover.pyramid, recipe.dataset.image_size
        self.seed, self.every, self.betas, self.device = recipe.seed, settings.every, recipe.recover.betas, device
        self.sides = settings.sides(size)
        self.levels = [torch.zeros(num_images, 3, side, side, device=device) for side in self.sides]
        self.first, self.second = ([torch.zeros_like(level) for level in self.levels] for _ in range(2))
        self.ups = [enlargement(side, self.sides[-1], device) for side in self.sides]
        self.whole = enlargement(self.sides[-1], size, device) if self.sides[-1] != size else None
        colours = torch.tensor(COLOURS, device=device)
        self.colours = 2 * colours / colours.norm(dim=0).max()
        self.is_in = torch.zeros(len(self.sides), device=device)
        self.updates = torch.zeros(1, device=device)
        """Adam's updates since the last level came in."""
        self.low, self.high = (torch.full((3,), bound, device=device) for bound in (-torch.inf, torch.inf))

    def load(self, job: Job) -> None:
        """Resets all buffers, in place, to the beginning of a job; its noise depends on (seed, class, slot) alone."""
        rows = list(zip(job.classes().tolist(), job.slots().tolist(), strict=True))
        for side, level in zip(self.sides, self.levels, strict=True):
            stream = Stream(self.seed, f"recover/pyramid/{side}")
            level.copy_(stream.normal(rows, 3 * side**2, self.device).view(level.shape))
        self.is_in.zero_()
        self._enter(0)

    def grow(self, iteration: int) -> bool:
        """Lets the next level in, if that is due before the iteration; returns whether it was."""
        number, rest = divmod(iteration, self.every)
        if is_due := rest == 0 and 0 < number < len(self.levels):
            self._enter(number)
        return is_due

    def leaves(self) -> list[Tensor]:
        """The levels, as what gradients are asked for."""
        return [level.detach().requires_grad_() for level in self.levels]

    def pixels(self, levels: Sequence[Tensor] | None = None) -> Tensor:
        """The images that levels make, in 0 ... 1: [N, 3, S, S]; by default the current ones."""
        total = torch.zeros(())
        for number, (level, up) in enumerate(zip(levels or self.levels, self.ups, strict=True)):
            part = self.is_in[number] * (up @ level @ up.T)
            total = part if number == 0 else total + part
        made = torch.einsum("kc,nchw->nkhw", self.colours, total).sigmoid()
        return made if self.whole is None else self.whole @ made @ self.whole.T

    def descend(self, gradients: Sequence[Tensor], rate: Tensor) -> None:
        """A step of Adam on all levels. rate: float32 scalar; a level that is not in has a gradient of 0, and stays."""
        self.updates += 1
        for number, gradient in enumerate(gradients):
            state = self.levels[number], gradient.contiguous(), self.first[number], self.second[number]
            pixel_adam(*state, rate, self.updates[0], betas=self.betas, low=self.low, high=self.high)

    def state(self) -> State:
        """All that iterations change, for `restore`; not copied."""
        named = {"level": self.levels, "first": self.first, "second": self.second}
        tensors = {
            f"{name}-{side}": part for name, of in named.items() for side, part in zip(self.sides, of, strict=True)
        }
        return tensors | {"is_in": self.is_in, "pyramid_updates": self.updates}

    def restore(self, tensors: State) -> None:
        """Goes on, in place, from the state of the job that is loaded."""
        for name, buffer in self.state().items():
            buffer.copy_(tensors[name])

    def _enter(self, number: int) -> None:
        for level in self.levels[:number]:
            level.mul_(number / (number + 1))
        self.levels[number].div_(number + 1)
        self.is_in[number] = 1
        for moment in (*self.first, *self.second, self.updates):
            moment.zero_()
