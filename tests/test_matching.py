"""Layer distances against float64 transcriptions of the specification."""

import pytest
import torch

from fastcondense.matching import Targets, layer_distances, layer_weights


def moments(lengths, dtype=torch.float64):
    torch.manual_seed(len(lengths))
    return [(torch.randn(n, dtype=dtype), torch.rand(n, dtype=dtype)) for n in lengths]


@pytest.mark.parametrize("lengths", [[3], [64, 1, 116, 7], [512] * 20])
def test_distances_are_unsquared_norms(lengths):
    targets, measured = moments(lengths), moments([*lengths, 1])[:-1]
    inputs = [tensor.float().requires_grad_() for pair in measured for tensor in pair]
    pairs = list(zip(inputs[::2], inputs[1::2], strict=True))
    ours = layer_distances(pairs, Targets.of([(m.float(), v.float()) for m, v in targets]))
    truths = [tensor.clone().requires_grad_() for pair in measured for tensor in pair]
    expected = torch.stack(
        [
            torch.norm(target_var - var) + torch.norm(target_mean - mean)
            for (target_mean, target_var), mean, var in zip(targets, truths[::2], truths[1::2], strict=True)
        ]
    )
    torch.testing.assert_close(ours.double(), expected, rtol=1e-6, atol=0)
    weights = torch.rand(len(lengths), dtype=torch.float64)
    gradients = torch.autograd.grad((ours * weights.float()).sum(), inputs)
    wanted = torch.autograd.grad((expected * weights).sum(), truths)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-8)


def test_zero_distance_has_zero_gradient():
    mean, var = torch.randn(5), torch.rand(5)
    inputs = [mean.clone().requires_grad_(), var.clone().requires_grad_()]
    distances = layer_distances([tuple(inputs)], Targets.of([(mean, var)]))
    assert distances.tolist() == [0]
    assert all(torch.equal(g, torch.zeros(5)) for g in torch.autograd.grad(distances.sum(), inputs))


def test_only_the_first_layer_is_weighted():
    assert layer_weights(4, 10.0).tolist() == [10, 1, 1, 1]
