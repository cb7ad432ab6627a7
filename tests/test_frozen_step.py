"""The benchmark of a step for a frozen backbone: every variant condenses, and by its own objective."""

import pytest
import torch
from frozen_step import VARIANTS, OurStep, PublishedStep, make
from torch.nn import functional as F

from fastcondense.recover.head_gradients import HeadGradients, head_gradient


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_moves_all_its_levels(variant):
    step = make(variant, "zoo/convnet3_w32", 16, 2)
    levels = step.levels if isinstance(step, PublishedStep) else step.step.pyramid.levels
    before = [level.detach().clone() for level in levels]
    step()
    step()
    assert [tuple(level.shape) for level in levels] == [(10, 3, side, side) for side in (1, 2, 4, 8, 16)]
    for level, old in zip(levels, before, strict=True):
        assert torch.isfinite(level).all() and not torch.equal(level, old)


def test_ours_has_the_objective_that_is_asked_for():
    steps = {name: make(f"{name}-fp32", "zoo/convnet3_w32", 16, 2) for name in ("gradient", "means")}
    kinds = {name: type(step.step.targets[0]) for name, step in steps.items() if isinstance(step, OurStep)}
    assert kinds["gradient"] is HeadGradients and kinds["means"] is not HeadGradients


def test_the_published_step_nears_the_gradient_of_its_real_views():
    """With windows that are the whole image, and one layer: the cosine that it descends on, by autograd in float64."""
    torch.manual_seed(0)
    step = make("published", "zoo/convnet3_w32", 16, 2)
    step.view = lambda images: (images - step.mean) / step.std
    step.optimizer.param_groups[0]["lr"] = 0.05
    weight = 0.01 * torch.randn(10, step.features(step.real).shape[1])

    def distance():
        gradients = []
        for images in (step.real, step.pixels().repeat(2, 1, 1, 1)):
            head = weight.double().requires_grad_()
            bias = torch.zeros(10, dtype=torch.float64, requires_grad=True)
            seen = step.features(images).detach().double()
            loss = F.cross_entropy(seen @ head.T + bias, step.labels)
            parts = torch.autograd.grad(loss, (head, bias))
            gradients.append(torch.cat((parts[0], parts[1][:, None]), 1).flatten())
            ours = head_gradient(seen, step.labels, weight.double())
            torch.testing.assert_close(ours.flatten(), gradients[-1])
        return 1 - float(F.cosine_similarity(*gradients, 0))

    before = distance()
    for _ in range(30):
        step()
    assert distance() < 0.8 * before
