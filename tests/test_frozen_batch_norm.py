"""frozen_batch_norm against autograd through its definition in float64, forward and backward."""

import pytest
import torch

from fastcondense.kernels.frozen_batch_norm import frozen_batch_norm, frozen_batch_norm_reference


def relative(ours, truth):
    return float((ours.detach().double() - truth.detach()).norm() / truth.detach().norm().clamp(min=1e-30))


def make(shape, mean=0.0, residual=False):
    torch.manual_seed(1)
    channels = shape[1]
    scale, shift = torch.rand(channels) + 0.5, torch.randn(channels)
    x = (torch.randn(shape) + mean).contiguous(memory_format=torch.channels_last)
    center = x.mean((0, 2, 3)) + 0.3
    other = torch.randn(shape).contiguous(memory_format=torch.channels_last) if residual else None
    return x, scale, shift, center, other


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 9, 13), (1, 24, 7, 7), (3, 116, 1, 1), (4, 64, 14, 14)])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_forward_and_backward_equal_float64_autograd(shape, relu, residual, mean):
    x, scale, shift, center, other = make(shape, mean, residual)
    if mean:
        shift = shift - scale * center  # a frozen BatchNorm removes the mean that it knows
    inputs = [x.clone().requires_grad_()] + ([other.clone().requires_grad_()] if residual else [])
    truths = [t.detach().double().requires_grad_() for t in inputs]
    ours = frozen_batch_norm(inputs[0], scale, shift, center, residual=inputs[1] if residual else None, relu=relu)
    truth = frozen_batch_norm_reference(
        truths[0], scale.double(), shift.double(), residual=truths[1] if residual else None, relu=relu
    )
    upstream = [torch.randn(t.shape, dtype=torch.float64) for t in truth]
    before_relu = frozen_batch_norm_reference(
        truths[0], scale.double(), shift.double(), residual=truths[1] if residual else None
    )[0]
    upstream[0][before_relu.abs() < 1e-3] = 0  # a ReLU input within rounding of zero may fall on either side
    tolerance = 1e-6 if mean == 0 else 3e-5  # at mean / sd = 100 the input itself carries 1e-5 in float32
    for one, other_one in zip(ours, truth, strict=True):
        assert relative(one, other_one) < tolerance
    gradients = torch.autograd.grad(ours, inputs, [u.float() for u in upstream])
    expected = torch.autograd.grad(truth, truths, upstream)
    for one, other_one in zip(gradients, expected, strict=True):
        assert relative(one, other_one) < tolerance


@pytest.mark.parametrize("used", [0, 1, 2])
def test_backward_through_one_output_alone(used):
    x, scale, shift, center, _ = make((2, 5, 4, 3))
    truth = x.double().requires_grad_()
    x.requires_grad_()
    ours = frozen_batch_norm(x, scale, shift, center, relu=True)[used]
    expected = frozen_batch_norm_reference(truth, scale.double(), shift.double(), relu=True)[used]
    weight = torch.randn(ours.shape, dtype=torch.float64)
    (one,) = torch.autograd.grad(ours, x, weight.float())
    (other,) = torch.autograd.grad(expected, truth, weight)
    assert relative(one, other) < 1e-6


def test_float64_passes_gradcheck():
    x, scale, shift, center, other = make((2, 3, 3, 2), residual=True)
    arguments = [t.double() for t in (scale, shift, center)]
    inputs = [t.double().requires_grad_() for t in (x, other)]

    def call(x, other):
        return frozen_batch_norm(x.contiguous(memory_format=torch.channels_last), *arguments, residual=other, relu=True)

    assert torch.autograd.gradcheck(call, inputs)


def test_variance_survives_a_large_mean():
    x, scale, shift, center, _ = make((8, 4, 16, 16), mean=1000.0)
    _, mean, var = frozen_batch_norm(x, scale, shift, center)
    assert relative(mean, x.double().mean((0, 2, 3))) < 1e-6
    assert relative(var, x.double().var((0, 2, 3), correction=0)) < 1e-5


def test_two_runs_give_the_same_bits():
    x, scale, shift, center, _ = make((8, 64, 14, 14))
    first, second = (frozen_batch_norm(x, scale, shift, center, relu=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_wrong_input_is_refused():
    x, scale, shift, center, _ = make((2, 4, 5, 5))
    with pytest.raises(ValueError, match="channels_last"):
        frozen_batch_norm(x.contiguous(), scale, shift, center)
    with pytest.raises(ValueError, match="scale"):
        frozen_batch_norm(x, scale[:3], shift, center)
    with pytest.raises(ValueError, match="residual"):
        frozen_batch_norm(x, scale, shift, center, residual=x[:1])
