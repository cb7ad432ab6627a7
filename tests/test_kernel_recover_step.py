"""One whole recover step through the Triton kernels, beside the same step through the CPU's: losses and images."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE
from torch import Tensor, nn
from torch.nn import functional as F

from fastcondense.data.jobs import jobs
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Recover
from fastcondense.recipe.settings import Dataset
from fastcondense.recover.by_statistics import RecoverStep
from fastcondense.teachers.teacher import Teacher

DATASET = Dataset(name="digits", image_size=16, resize=16)


class Net(nn.Module):
    """A stem with its pool, a residual block, a downsampling shortcut, and a SiLU: what the fused kernels know."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.one, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.two, self.norm2 = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.shortcut, self.norm3 = nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16)
        self.last, self.norm4 = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.stem(x))))
        x = F.relu(self.norm1(self.one(x)) + x)
        x = F.relu(self.norm2(self.two(x)) + self.norm3(self.shortcut(x)))
        return self.head(F.silu(self.norm4(self.last(x))).mean((2, 3)))


def teacher(statistics: tuple[str, ...]) -> Teacher:
    torch.manual_seed(0)
    net = Net().eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    made = Teacher.of(net, "net", "abcd", range(4), DATASET, statistics, 4)
    _, moments = made(torch.randn(4, 3, 16, 16))
    made.targets |= {layer.name: vectors for layer, vectors in zip(made.layers, moments, strict=True)}
    return made


@pytest.mark.parametrize("statistics", [("bn",), ("bn", "conv", "patch")])
def test_a_step_through_triton_equals_the_cpus(statistics: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    recover = Recover(
        iterations=3,
        lr=0.1,
        batch_size=2,
        match_weight=0.1,
        statistics=statistics,
        patch_size=4,
        statistics_ema=0.5,
        tv_weight=1e-3,
        l2_weight=1e-3,
        roll=(-2, 2),
    )
    recipe = Recipe(dataset=DATASET, recover=recover)
    job = jobs(recipe, 4)[0]
    closed = RecoverStep(recipe, job, [teacher(statistics)], torch.device("cpu"))
    for _ in range(2):
        closed(((0, 1.0),))
    kernels = RecoverStep(recipe, job, [teacher(statistics).to(DEVICE)], DEVICE)
    if DEVICE.type == "cpu":
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    for _ in range(2):
        kernels(((0, 1.0),))
    torch.testing.assert_close(kernels.losses.cpu(), closed.losses, rtol=1e-5, atol=1e-6)
    # Adam divides by the gradient's own size, so a pixel without gradient amplifies rounding: compare as a whole.
    assert float((kernels.images.cpu() - closed.images).norm() / closed.images.norm()) < 1e-4
