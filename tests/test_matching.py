"""The matching loss against a float64 transcription of the specification, by autograd through torch.norm."""

import pytest
import torch
from kernel_checks import NoHostReads, relative_rms

from fastcondense.statistics.matching import Matching, layer_weights

LAYOUTS = {
    "one": [(3, 3)],
    "odd": [(1, 1), (3, 3, 7, 7), (116, 116), (7, 7, 1, 1)],
    "long": [(2048, 2048), (512, 512, 196, 196)],
}
SHARES = [0.5, 0.3, 1.25]


def moments(layout, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randn(n, dtype=torch.float64, generator=generator) for n in lengths) for lengths in layout]


def single(layers):
    return [tuple(vector.float() for vector in layer) for layer in layers]


def leaves(layers, dtype):
    return [tuple(vector.detach().to(dtype).requires_grad_() for vector in layer) for layer in layers]


def flat(layers):
    return [vector for layer in layers for vector in layer]


class Published:
    """The loss as the specification writes it, layer by layer, with a running mean of its own for every vector."""

    def __init__(self, target_sets, weights, ema=0.0, ema_start="first"):
        self.target_sets, self.weights = target_sets, weights
        self.ema, self.ema_start = ema, ema_start
        self.averages = [[None] * len(layer) for layer in target_sets[0][1]]

    def __call__(self, layers, live=None):
        total = sum(0 * vector.sum() for vector in flat(layers))
        for number, layer in enumerate(layers):
            if live is not None and not live[number]:
                continue
            for v, vector in enumerate(layer):
                value = self.compared(number, v, vector)
                for share, targets in self.target_sets:
                    total = total + share * self.weights[number] * torch.norm(value - targets[number][v])
        return total

    def compared(self, number, v, vector):
        if not self.ema:
            return vector
        before, value = self.averages[number][v], vector.detach()
        if before is None:
            now = value if self.ema_start == "first" else (1 - self.ema) * value
        else:
            now = self.ema * before + (1 - self.ema) * value
        self.averages[number][v] = now
        return now + vector - value


def assert_same(matching, published, layout, seed, live=None, tolerance=1e-6):
    """One call of both: values, and gradients of all vectors together."""
    truth = leaves(moments(layout, seed), torch.float64)
    ours = leaves(truth, torch.float32)
    expected = published(truth, live)
    loss = matching(ours, live)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=tolerance)
    gradient = torch.autograd.grad(2 * loss, flat(ours))
    wanted = torch.autograd.grad(2 * expected, flat(truth))
    assert relative_rms(torch.cat(gradient), torch.cat(wanted)) < tolerance
    for one, other in zip(gradient, wanted, strict=True):
        assert bool(one.any()) == bool(other.any())


AVERAGES = [(0.0, "first"), (0.8, "first"), (0.4, "zero")]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_sets", [1, 3])
@pytest.mark.parametrize("average", AVERAGES, ids=str)
def test_equals_the_published_formula(layout, num_sets, average):
    layout = LAYOUTS[layout]
    sets = [(share, moments(layout, 100 + k)) for k, share in enumerate(SHARES[:num_sets])]
    weights = torch.linspace(0.5, 10, len(layout), dtype=torch.float64)
    settings = {"ema": average[0], "ema_start": average[1]}
    published = Published(sets, weights.tolist(), **settings)
    matching = Matching([(share, single(s)) for share, s in sets], weights.float(), **settings)
    generator = torch.Generator().manual_seed(1)
    for call in range(6):  # all layers, then drawn ones, some of which were never matched before
        live = None if call in (3, 5) else torch.rand(len(layout), generator=generator) < 0.6
        if call == 1:
            live = torch.zeros(len(layout), dtype=torch.bool)
        assert_same(matching, published, layout, call, live)


@pytest.mark.parametrize("start", ["first", "zero"])
@pytest.mark.parametrize("first_live", [None, torch.tensor([True, False, True, False])])
def test_after_a_reset_it_starts_anew(start, first_live):
    layout = LAYOUTS["odd"]
    targets, weights = moments(layout, 100), [1.0, 2.0, 3.0, 4.0]
    matching = Matching([(1.0, single(targets))], torch.tensor(weights), ema=0.8, ema_start=start)
    for _ in range(2):
        published = Published([(1.0, targets)], weights, 0.8, start)
        for call in range(3):
            assert_same(matching, published, layout, call, first_live if call == 0 else None)
        matching.reset()


def test_a_dropped_layer_keeps_its_running_mean_to_the_bit():
    layout = LAYOUTS["odd"]
    matching = Matching([(1.0, single(moments(layout, 100)))], torch.ones(4), ema=0.8)
    matching(single(moments(layout, 1)))
    before = matching.state()
    matching(single(moments(layout, 2)), torch.tensor([False, True, False, True]))
    sizes = [sum(layer) for layer in layout]
    pairs = zip(matching.state()["average"].split(sizes), before["average"].split(sizes), strict=True)
    assert [torch.equal(now, then) for now, then in pairs] == [True, False, True, False]


def test_the_state_goes_on_elsewhere():
    layout, settings = LAYOUTS["odd"], {"ema": 0.8, "ema_start": "first"}
    targets = single(moments(layout, 100))
    one, other = (Matching([(1.0, targets)], torch.ones(4), **settings) for _ in range(2))
    one(single(moments(layout, 1)), torch.tensor([True, True, False, True]))
    state = one.state()
    average = other.average
    other.load_state(state)
    assert other.average is average  # in place
    for call in (2, 3):
        assert torch.equal(one(single(moments(layout, call))), other(single(moments(layout, call))))
    assert not torch.equal(state["average"], one.average)  # what was taken is a copy
    with pytest.raises(ValueError, match=r"running rate of shape \(270,\), got nothing"):
        one.load_state({"average": state["average"]})
    with pytest.raises(ValueError, match=r"running average of shape \(270,\), got \(3,\)"):
        one.load_state(state | {"average": torch.zeros(3)})


def test_targets_are_replaced_in_place():
    layout = LAYOUTS["odd"]
    old, kept, new = (moments(layout, seed) for seed in (100, 101, 102))
    weights = [10.0, 1.0, 1.0, 1.0]
    matching = Matching([(0.5, single(kept)), (0.25, single(old))], torch.tensor(weights))
    buffer = matching.targets
    matching.set_targets(1, single(new))
    assert matching.targets is buffer
    assert_same(matching, Published([(0.5, kept), (0.25, new)], weights), layout, 0)
    with pytest.raises(ValueError, match=r"targets of the lengths .* got \[\[3, 3\]\]"):
        matching.set_targets(0, single(moments([(3, 3)])))


def test_zero_distance_has_zero_gradient_beside_others():
    layers = single(moments([(5, 5), (4, 4)]))
    other = single(moments([(5, 5), (4, 4)], seed=1))
    inputs = leaves(layers, torch.float32)
    loss = Matching([(1.0, [layers[0], other[1]])], torch.ones(2))(inputs)
    gradients = torch.autograd.grad(loss, flat(inputs))
    assert all(torch.equal(g, torch.zeros(5)) for g in gradients[:2])
    assert all(float(g.norm()) == pytest.approx(1) for g in gradients[2:])  # a unit vector in statistic space


def test_without_layers_the_loss_is_a_constant_zero():
    matching = Matching([(0.5, []), (0.5, [])], layer_weights(0), ema=0.8)
    for live in (None, torch.zeros(0, dtype=torch.bool)):
        loss = matching([], live)
        assert loss.item() == 0 and loss.shape == () and not loss.requires_grad
    matching.set_targets(1, [])
    matching.reset()
    matching.load_state(matching.state())
    image = torch.ones(3, requires_grad=True)
    assert torch.equal(torch.autograd.grad(image.sum() + 2 * loss, image)[0], torch.ones(3))


@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_a_call_is_not_read_by_the_host(ema):
    layout = LAYOUTS["odd"]
    matching = Matching([(1.0, single(moments(layout, 100)))], torch.ones(4), ema=ema)
    inputs = leaves(moments(layout), torch.float32)
    live = torch.tensor([True, False, True, True])
    with NoHostReads():
        torch.autograd.grad(matching(inputs, live) + matching(inputs), flat(inputs))


def test_float64_moments_are_compared_in_float64():
    layout = LAYOUTS["odd"]
    sets, inputs = [(0.5, moments(layout, 100)), (0.5, moments(layout, 101))], leaves(moments(layout), torch.float64)
    loss = Matching(sets, torch.ones(4), ema=0.8)(inputs)
    expected = Published(sets, [1.0] * 4, 0.8)(inputs)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-13)
    gradients = (torch.cat(torch.autograd.grad(total, flat(inputs))) for total in (loss, expected))
    assert relative_rms(*gradients) < 1e-13


def test_weights_that_do_not_fit_the_layers_are_refused():
    with pytest.raises(ValueError, match="matching of 2 layers got weights of 3"):
        Matching([(1.0, single(moments([(3, 3), (4, 4)])))], torch.ones(3))
    with pytest.raises(ValueError, match=r"targets of the lengths \[\[3, 3\]\], got \[\[3, 4\]\]"):
        Matching([(1.0, single(moments([(3, 3)]))), (1.0, single(moments([(3, 4)])))], torch.ones(1))


def test_only_the_first_layer_is_weighted():
    assert layer_weights(4).tolist() == [10, 1, 1, 1]


@pytest.mark.parametrize("average", AVERAGES, ids=str)
def test_layers_losses_are_the_formulas_with_the_other_layers_left_out(average):
    layout, weights = LAYOUTS["odd"], [10.0, 1.0, 2.0, 0.5]
    sets = [(share, moments(layout, 100 + k)) for k, share in enumerate(SHARES)]
    settings = {"ema": average[0], "ema_start": average[1]}
    matching = Matching([(share, single(s)) for share, s in sets], torch.tensor(weights), **settings)
    published = Published(sets, weights, **settings)
    for call, dropped in enumerate([[], [2], [0, 3]]):
        live, values = [k not in dropped for k in range(4)], moments(layout, call)
        total = matching(single(values), torch.tensor(live))
        losses = matching.layer_losses()
        wanted = [
            float(published(values, [live[k] and k == one for k in range(4)])) if live[one] else 0.0 for one in range(4)
        ]
        torch.testing.assert_close(losses, torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-9)
        assert [bool(loss) for loss in losses] == live
        assert float(losses.sum()) == pytest.approx(float(total), rel=1e-6)
