"""The training loop against hand-written updates, and itself after an interruption."""

import math

import pytest
import torch
from small import SmallNetwork
from torch import nn
from torch.nn import functional as F

from fastcondense.networks import fit as fit_module
from fastcondense.networks.fit import fit
from fastcondense.recipe.settings import Optimization
from fastcondense.rng import Stream


def batches(epoch):
    generator = torch.Generator().manual_seed(epoch)
    for count in (6, 6, 3):
        x = torch.randn(count, 3, 6, 6, generator=generator)
        yield x, torch.randint(0, 5, (count,), generator=generator)


def small():
    torch.manual_seed(5)
    return SmallNetwork()


def run(optimization, checkpoint, report=lambda _: None, loss=F.cross_entropy, evaluate=lambda _: {}, net=None):
    return fit(net or small(), optimization, batches, loss, evaluate, Stream(1, "test"), checkpoint, report)


def assert_same_bits(made, wanted):
    assert made.state_dict().keys() == wanted.state_dict().keys()
    for name, value in wanted.state_dict().items():
        assert torch.equal(made.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("every", "num_scored", "wanted"),
    [(0, 0, [10, 20, 28]), (0, 150, [10, 20, 28]), (0, 151, [11, 22, 28]), (7, 151, [7, 14, 21, 28])],
)
def test_few_views_are_not_outweighed_by_scoring(tmp_path, every, num_scored, wanted):
    """15 views an epoch: unless told otherwise, as many are seen as images are scored, from ten epochs on."""
    optimization = Optimization(epochs=28, evaluate_every=every)
    parts = Stream(1, "test"), tmp_path / "x.pt", lambda _: None
    _, history = fit(small(), optimization, batches, F.cross_entropy, lambda _: {}, *parts, num_scored=num_scored)
    assert [entry["epoch"] for entry in history] == wanted


class Interruption(Exception):
    pass


def interrupt_after(epochs):
    """A report that raises in the epoch after `epochs` finished and saved ones."""

    def report(entry):
        if entry["epoch"] == epochs + 1:
            raise Interruption

    return report


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "lr": 0.05, "ema": 0.9, "warmup_epochs": 2},
        {"optimizer": "adamw", "lr": 0.01, "ema": 0.0},
        {"optimizer": "adam", "lr": 0.01, "ema": 0.5, "schedule": "linear"},
    ],
    ids=lambda settings: settings["optimizer"],
)
@pytest.mark.parametrize("finished", [(4,), (1, 3)])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, settings, finished):
    monkeypatch.setattr(fit_module, "_SECONDS_BETWEEN_CHECKPOINTS", 0)
    optimization = Optimization(epochs=5, evaluate_every=1, **settings)
    whole, wanted = small(), small()
    averaged, history = run(optimization, tmp_path / "whole.pt", net=whole)

    for epochs in finished:
        with pytest.raises(Interruption):
            run(optimization, tmp_path / "cut.pt", interrupt_after(epochs))
    seen = []
    resumed = small()
    resumed_average, resumed_history = run(optimization, tmp_path / "cut.pt", seen.append, net=resumed)
    assert [entry["epoch"] for entry in seen] == list(range(finished[-1] + 1, 6))  # it did not start again
    assert_same_bits(resumed, whole)
    assert_same_bits(resumed_average, averaged)
    assert not torch.equal(whole.head.weight, wanted.head.weight)
    for entry, other in zip(resumed_history, history, strict=True):
        assert {**entry, "seconds": 0} == {**other, "seconds": 0}
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5]


def test_a_finished_run_is_not_trained_again(tmp_path):
    optimization = Optimization(epochs=2, ema=0.7)
    first, history = run(optimization, tmp_path / "x.pt")
    seen = []
    again, same_history = run(optimization, tmp_path / "x.pt", seen.append)
    assert not seen and same_history == history
    assert_same_bits(again, first)


def test_the_dropout_stream_decides_the_weights_and_the_global_generator_does_not(tmp_path):
    optimization = Optimization(epochs=2)
    nets = [small() for _ in range(3)]
    for k, (net, seed) in enumerate(zip(nets, (1, 1, 2), strict=True)):
        torch.manual_seed(100 + k)
        stream = Stream(seed, "test")
        fit(net, optimization, batches, F.cross_entropy, lambda _: {}, stream, tmp_path / f"{k}.pt", lambda _: None)
        assert torch.initial_seed() == 100 + k
    assert_same_bits(nets[1], nets[0])
    assert not torch.equal(nets[2].head.weight, nets[0].head.weight)


@pytest.mark.parametrize("decay", [0.9, 0.5])
def test_the_moving_average_and_the_history_are_those_of_a_loop_by_hand(tmp_path, decay):
    settings = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.5, "weight_decay": 0.0, "schedule": "linear"}
    optimization = Optimization(epochs=3, ema=decay, evaluate_every=2, **settings)
    net, by_hand, evaluated = small(), small(), []
    net.drop.p = by_hand.drop.p = 0.0

    average = {name: p.detach().double() for name, p in by_hand.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in by_hand.named_parameters()}
    losses = []
    for epoch in range(3):
        total = 0.0
        for x, labels in batches(epoch):
            loss = F.cross_entropy(by_hand(x), labels)
            by_hand.zero_grad()
            loss.backward()
            total += loss.item() * len(x) / 15
            with torch.no_grad():
                for name, p in by_hand.named_parameters():
                    velocity[name] = 0.5 * velocity[name] + p.grad
                    p -= 0.1 * (1 - epoch / 3) * velocity[name]
                    average[name] = decay * average[name] + (1 - decay) * p.double()
        losses.append(total)

    def evaluate(net):
        evaluated.append(net)
        return {"top1": 12.5}

    averaged, history = run(optimization, tmp_path / "x.pt", evaluate=evaluate, net=net)
    assert averaged is not net and evaluated == [averaged, averaged]
    for name, p in net.named_parameters():
        torch.testing.assert_close(p, by_hand.get_parameter(name), rtol=1e-5, atol=1e-6)
    for name, p in averaged.named_parameters():
        torch.testing.assert_close(p.double(), average[name], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(averaged.head.weight, net.head.weight, rtol=1e-2)
    for name, buffer in averaged.named_buffers():
        torch.testing.assert_close(buffer, net.get_buffer(name), rtol=0, atol=0)
    assert [entry["epoch"] for entry in history] == [2, 3]
    assert [entry["loss"] for entry in history] == pytest.approx(losses[1:], rel=1e-5)
    assert [entry["lr"] for entry in history] == pytest.approx([0.2 / 3, 0.1 / 3])
    assert all(entry["top1"] == 12.5 for entry in history)
    assert 0 < history[0]["seconds"] < history[1]["seconds"]


@pytest.mark.parametrize(("batch_size", "accumulate", "parts"), [(6, 2, [3, 3]), (6, 3, [2, 2, 2]), (7, 2, [4, 2])])
def test_batch_norm_sees_the_parts_of_a_batch_and_the_optimizer_the_batch(tmp_path, batch_size, accumulate, parts):
    plain = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "ema": 0.9}
    optimization = Optimization(epochs=2, batch_size=batch_size, accumulate=accumulate, evaluate_every=1, **plain)
    net, by_hand = small(), small()
    net.drop.p = by_hand.drop.p = 0.0
    average, losses = {name: p.detach().clone() for name, p in by_hand.named_parameters()}, []
    sizes = {6: parts, 3: [3]}  # of the last batch, the third image joins the two before
    for epoch in range(2):
        total = 0.0
        for x, labels in batches(epoch):
            by_hand.zero_grad()
            pairs = zip(x.split(sizes[len(x)]), labels.split(sizes[len(x)]), strict=True)
            loss = sum(F.cross_entropy(by_hand(part), wanted, reduction="sum") for part, wanted in pairs) / len(x)
            loss.backward()
            total += loss.item() * len(x) / 15
            with torch.no_grad():
                for name, p in by_hand.named_parameters():
                    p -= 0.1 * p.grad
                    average[name] = 0.9 * average[name] + 0.1 * p
        losses.append(total)
    averaged, history = run(optimization, tmp_path / "x.pt", net=net)
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    for name, p in averaged.named_parameters():
        torch.testing.assert_close(p, average[name], rtol=1e-5, atol=1e-6)
    assert [entry["loss"] for entry in history] == pytest.approx(losses, rel=1e-5)
    assert int(net.norm.num_batches_tracked) == 2 * (2 * len(parts) + 1)


def test_parts_do_not_change_a_network_without_batch_norm(tmp_path):
    def make():
        torch.manual_seed(2)
        return nn.Sequential(nn.Flatten(), nn.Linear(108, 7), nn.ReLU(), nn.Linear(7, 5))

    settings = {"epochs": 2, "batch_size": 6, "optimizer": "sgd", "lr": 0.1}
    whole, _ = run(Optimization(**settings), tmp_path / "whole.pt", net=make())
    split, _ = run(Optimization(**settings, accumulate=4), tmp_path / "split.pt", net=make())
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(split.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_without_a_moving_average_the_net_itself_is_evaluated(tmp_path):
    net, evaluated = small(), []
    made, _ = run(Optimization(epochs=1), tmp_path / "x.pt", evaluate=lambda n: evaluated.append(n) or {}, net=net)
    assert made is net and evaluated == [net]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_loss_that_diverges_is_an_error_with_its_epoch(tmp_path, ema):
    settings = {"optimizer": "sgd", "lr": 1e18, "weight_decay": 0.0, "schedule": "constant"}
    optimization = Optimization(epochs=3, evaluate_every=1, ema=ema, **settings)
    words = r"training diverged in epoch [012]: loss (nan|inf); try a smaller learning rate"
    with pytest.raises(ValueError, match=words):
        run(optimization, tmp_path / "x.pt", loss=lambda logits, _: logits.square().mean())


def test_a_diverged_state_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "_SECONDS_BETWEEN_CHECKPOINTS", 0)
    optimization = Optimization(epochs=4, evaluate_every=4)
    with pytest.raises(ValueError, match="training diverged"):
        run(optimization, tmp_path / "x.pt", loss=lambda logits, _: logits.sum() * math.nan)
    if (tmp_path / "x.pt").exists():
        kept = torch.load(tmp_path / "x.pt")["net"]
        assert all(value.isfinite().all() for value in kept.values())
