"""pixel_adam against torch.optim.Adam followed by a clamp a channel, in float64."""

import torch

from fastcondense.kernels.pixel_adam import pixel_adam


def test_equals_adam_and_clip():
    torch.manual_seed(0)
    images = torch.randn(5, 3, 7, 9)
    low, high = torch.tensor([-1.0, -0.8, -1.2]), torch.tensor([1.0, 0.9, 1.1])
    truth = images.double().clone().requires_grad_()
    optimizer = torch.optim.Adam([truth], lr=0.25, betas=(0.5, 0.9), eps=1e-8)
    first, second = torch.zeros_like(images), torch.zeros_like(images)
    for step in range(1, 60):
        gradient = torch.randn_like(images)
        rate = 0.25 / step
        optimizer.param_groups[0]["lr"] = rate
        truth.grad = gradient.double()
        optimizer.step()
        with torch.no_grad():
            truth.copy_(torch.maximum(torch.minimum(truth, high.double()[:, None, None]), low.double()[:, None, None]))
        count = torch.tensor(float(step))
        pixel_adam(images, gradient, first, second, torch.tensor(rate), count, betas=(0.5, 0.9), low=low, high=high)
    truth = truth.detach()
    assert float((images.double() - truth).norm() / truth.norm()) < 1e-6


def test_a_zero_gradient_moves_nothing():
    images = torch.rand(1, 3, 2, 2)
    before, zeros = images.clone(), torch.zeros(1, 3, 2, 2)
    one = torch.tensor(1.0)
    low, high = torch.zeros(3), torch.ones(3)
    pixel_adam(images, zeros, zeros.clone(), zeros.clone(), one, one, betas=(0.5, 0.9), low=low, high=high)
    assert torch.equal(images, before)
