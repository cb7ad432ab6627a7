"""MoCo's loss and its gradients against a float64 transcription, its queue against a list, its step by hand."""

import copy

import pytest
import torch
from torch import nn

from fastcondense.recipe.settings import MoCo
from fastcondense.squeeze import moco
from fastcondense.squeeze.moco import MomentumContrast, contrast


def contrast_by_hand(queries, keys, queue, temperature):
    """Equation 1 of MoCo, query by query, float64."""
    losses = []
    for q, k in zip(queries, keys, strict=True):
        q, k = q / q.norm(), k.detach() / k.detach().norm()
        positive = torch.exp(q @ k / temperature)
        negative = sum(torch.exp(q @ other / temperature) for other in queue)
        losses.append(-torch.log(positive / (positive + negative)))
    return torch.stack(losses)


@pytest.mark.parametrize(("batch", "length", "size"), [(1, 1, 3), (5, 17, 9), (8, 64, 128)])
@pytest.mark.parametrize("temperature", [0.2, 0.07])
def test_the_loss_and_its_gradient(batch, length, size, temperature):
    generator = torch.Generator().manual_seed(batch)
    queries, keys = (torch.randn(batch, size, generator=generator, dtype=torch.float64) for _ in range(2))
    queue = nn.functional.normalize(torch.randn(length, size, generator=generator, dtype=torch.float64))
    exact, single = queries.requires_grad_(), queries.detach().float().requires_grad_()
    wanted = contrast_by_hand(exact, keys, queue, temperature)
    made = contrast(single, keys.float().requires_grad_(), queue.float(), temperature)
    torch.testing.assert_close(made.double(), wanted, rtol=1e-5, atol=2e-6)
    (wanted_gradient,) = torch.autograd.grad(wanted.sum(), exact)
    (gradient,) = torch.autograd.grad(made.sum(), single)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=1e-5, atol=2e-6)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(moco, "_FEATURES", 6)


def learner(parts=1, **settings):
    torch.manual_seed(0)
    return MomentumContrast(Net(), "fc", MoCo(**({"queue": 7} | settings)), parts)


def rows(seed, count=3):
    return torch.randn(count, 2, 3, 5, 5, generator=torch.Generator().manual_seed(seed))


def test_the_queue_holds_the_last_keys_and_the_oldest_go_first():
    made, kept = learner(), []
    kept = list(made.queue.clone())
    for seed, count in enumerate((3, 3, 2, 7, 1, 3)):
        keys = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
        made.enqueue(keys)
        kept = (kept + list(keys))[-7:]
        at = int(made.oldest)
        assert torch.equal(torch.cat((made.queue[at:], made.queue[:at])), torch.stack(kept))


def test_the_first_queue_has_length_one():
    assert learner().queue.norm(dim=1) == pytest.approx([1.0] * 7, abs=1e-6)


def test_steps_are_those_of_a_loop_by_hand():
    made = learner(decay=0.9, temperature=0.3)
    query, key = copy.deepcopy(made.query).double(), copy.deepcopy(made.key).double()
    queue = list(made.queue.double())
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.5)
    for step in range(4):
        x = rows(step)
        losses = made(x)
        optimizer.zero_grad()
        losses.mean().backward()
        assert all(p.grad is None for p in made.key.parameters())
        optimizer.step()

        first, second = x.double().unbind(1)
        with torch.no_grad():
            for old, new in zip(key.parameters(), query.parameters(), strict=True):
                old.copy_(0.9 * old + 0.1 * new)
            keys = key(second)
        wanted = contrast_by_hand(query(first), keys, queue, 0.3)
        query.zero_grad()
        wanted.mean().backward()
        with torch.no_grad():
            for p in query.parameters():
                p -= 0.5 * p.grad
        queue = (queue + [k / k.norm() for k in keys])[-7:]
        torch.testing.assert_close(losses.double(), wanted, rtol=1e-4, atol=1e-5)
    for made_net, wanted_net in ((made.query, query), (made.key, key)):
        for name, value in wanted_net.state_dict().items():
            torch.testing.assert_close(made_net.state_dict()[name].double(), value.double(), rtol=1e-3, atol=1e-5)
    assert not torch.equal(made.key.conv.weight, made.query.conv.weight)


def test_the_head_is_two_layers_in_the_classifiers_place():
    head = learner().query.fc
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert (head[0].in_features, head[0].out_features, head[2].out_features) == (4, 4, 6)


def test_evaluation_changes_nothing():
    made = learner().eval()
    before = copy.deepcopy(made.state_dict())
    made(rows(0))
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_keys_of_parts_are_shuffled_and_come_back_in_order():
    """Without BatchNorm parts change nothing; with it, the parts of keys are others than the queries'."""
    plain, parted = learner(), learner(parts=2)
    for made in (plain, parted):
        made.query.norm, made.key.norm = nn.Identity(), nn.Identity()
    torch.testing.assert_close(parted(rows(0, 6)), plain(rows(0, 6)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parted.queue, plain.queue, rtol=1e-5, atol=1e-6)

    same = rows(1, 6)[:, :1].repeat(1, 2, 1, 1, 1)  # both views are one
    made = learner(parts=2)
    torch.manual_seed(1)
    made(same)
    query = nn.functional.normalize(torch.cat([made.query(part) for part in same[:, 0].split(3)]))
    assert (made.queue[:6] - query).abs().max() > 1e-3
