"""The matching loss against a float64 transcription of the specification, by autograd through torch.norm."""

import pytest
import torch

from fastcondense.matching import Matching, layer_weights


def moments(layout, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randn(n, dtype=dtype, generator=generator) for n in lengths) for lengths in layout]


def single(layers):
    return [tuple(vector.float() for vector in layer) for layer in layers]


LAYOUTS = [[(3, 3)], [(64, 64), (1, 1), (116, 116, 16, 16), (7, 7)], [(512, 512)] * 20, [(3, 3, 196, 196), (4, 4)]]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_sets", [1, 2, 3])
def test_equals_weighted_unsquared_norms(layout, num_sets):
    shares = [0.5, 0.3, 1.0][:num_sets]
    sets = [moments(layout, seed=k + 1) for k in range(num_sets)]
    weights = torch.rand(len(layout), dtype=torch.float64) + 0.5
    truth = [tuple(v.clone().requires_grad_() for v in layer) for layer in moments(layout)]
    expected = sum(
        share * weight * torch.norm(target - vector)
        for share, targets in zip(shares, sets, strict=True)
        for weight, layer, target_layer in zip(weights, truth, targets, strict=True)
        for vector, target in zip(layer, target_layer, strict=True)
    )
    ours = [tuple(v.detach().float().requires_grad_() for v in layer) for layer in truth]
    matching = Matching([(share, single(s)) for share, s in zip(shares, sets, strict=True)], weights.float())
    loss = matching(ours)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    flat = [v for layer in ours for v in layer]
    wanted = torch.autograd.grad(expected, [v for layer in truth for v in layer])
    for one, other in zip(torch.autograd.grad(2 * loss, flat), wanted, strict=True):
        assert float((one.double() - 2 * other).norm() / (2 * other).norm()) < 1e-6


def test_zero_distance_has_zero_gradient_beside_others():
    layers = single(moments([(5, 5), (4, 4)]))
    other = single(moments([(5, 5), (4, 4)], seed=1))
    inputs = [vector.clone().requires_grad_() for layer in layers for vector in layer]
    matching = Matching([(1.0, [layers[0], other[1]])], torch.ones(2))
    loss = matching([tuple(inputs[:2]), tuple(inputs[2:])])
    gradients = torch.autograd.grad(loss, inputs)
    assert all(torch.equal(g, torch.zeros(5)) for g in gradients[:2])
    assert all(float(g.norm()) == pytest.approx(1) for g in gradients[2:])  # a unit vector in statistic space


@pytest.mark.parametrize("start", ["first", "zero"])
def test_the_running_mean_is_compared_and_the_batch_has_the_gradient(start):
    layout, decay = [(3, 3), (7, 7, 4, 4)], 0.8
    target = moments(layout, seed=9)
    matching = Matching([(1.0, single(target))], torch.ones(2), decay, start)
    for _ in range(2):  # and again after a reset, from the start
        matching.reset()
        average = [torch.zeros_like(v) for layer in target for v in layer]
        for t in range(4):
            batch = [v for layer in moments(layout, seed=t) for v in layer]
            a = 0.0 if start == "first" and t == 0 else decay
            average = [a * e + (1 - a) * s for e, s in zip(average, batch, strict=True)]
            truth = [s.clone().requires_grad_() for s in batch]
            straight = [e + s - s.detach() for e, s in zip(average, truth, strict=True)]
            goals = [v for layer in target for v in layer]
            expected = sum(torch.norm(g - s) for g, s in zip(goals, straight, strict=True))
            ours = [s.float().requires_grad_() for s in batch]
            loss = matching([tuple(ours[:2]), tuple(ours[2:])])
            assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
            for g, w in zip(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, truth), strict=True):
                torch.testing.assert_close(g.double(), w, rtol=1e-5, atol=1e-6)


def test_only_the_first_layer_is_weighted():
    assert layer_weights(4, 10.0).tolist() == [10, 1, 1, 1]
