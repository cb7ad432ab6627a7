"""Muon and AdamW as one optimizer: its steps in float64, which weights are whose, and a training that is cut short."""

import dataclasses

import pytest
import torch
from small import fastcondense
from torch import nn
from torch.nn import functional as F

from fastcondense.labels.labels import hard_labels
from fastcondense.networks import fit as fit_module
from fastcondense.networks import zoo
from fastcondense.networks.fit import fit, hidden_weights, make_optimizer, set_learning_rate
from fastcondense.recipe.optimization import Optimization
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.train import Train
from fastcondense.rng import Stream
from fastcondense.students.task import why_not_captured

MUON = Optimization(optimizer="muon", lr=0.02, weight_decay=0.1, momentum=0.9, epochs=4, evaluate_every=1)


def network():
    """Hidden: a filter of more columns than rows, one of more rows than columns, and a matrix."""
    torch.manual_seed(0)
    convs = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 20, 1)
    depthwise = nn.Conv2d(20, 20, 3, groups=20)
    flat = nn.Flatten(), nn.Linear(80, 7), nn.Tanh(), nn.Linear(7, 5)
    return nn.Sequential(convs[0], nn.BatchNorm2d(8), nn.Tanh(), convs[1], nn.Tanh(), convs[2], depthwise, *flat)


HIDDEN = ["3.weight", "5.weight", "8.weight"]


def orthogonal(matrix):
    """Five Newton-Schulz steps of Jordan's coefficients, float64."""
    if len(matrix) > matrix.shape[1]:
        return orthogonal(matrix.T).T
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_three_steps_are_those_of_float64(layout):
    """Of the formulas by hand: hidden weights to bfloat16's rounding, and the others to AdamW's bits.

    Gradients are random: those of few classes lack directions, which rounding makes up.
    """
    net = network().to(memory_format=layout)
    twin = network().to(memory_format=layout)
    made, moments = make_optimizer(net, MUON), dict.fromkeys(HIDDEN, 0.0)
    plain = make_optimizer(twin, dataclasses.replace(MUON, optimizer="adamw"))
    for number, rate in enumerate((0.02, 0.01, 0.03)):
        set_learning_rate(made, rate)
        set_learning_rate(plain, rate)
        torch.manual_seed(number)
        for p in net.parameters():
            p.grad = torch.randn_like(p)
        before = {name: net.get_parameter(name).detach().double().clone() for name in HIDDEN}
        gradients = {name: p.grad.detach().clone() for name, p in net.named_parameters()}
        made.step()
        for name, weight in before.items():
            gradient, after = gradients[name].double().flatten(1), net.get_parameter(name).detach().double()
            moments[name] = 0.9 * moments[name] + 0.1 * gradient
            update = orthogonal(0.1 * gradient + 0.9 * moments[name])
            wanted = rate * 0.2 * max(update.shape) ** 0.5 * update
            changed = ((1 - 0.1 * rate) * weight - after).flatten(1)
            assert (changed - wanted).norm() < 0.06 * wanted.norm(), name
        for name, p in twin.named_parameters():
            p.grad = gradients[name]
        plain.step()
    for name, p in net.named_parameters():
        assert torch.equal(p, twin.get_parameter(name)) == (name not in HIDDEN), name


def batches(epoch):
    generator = torch.Generator().manual_seed(epoch)
    for count in (6, 3):
        x = torch.randn(count, 3, 4, 4, generator=generator)
        yield x, torch.randint(0, 5, (count,), generator=generator)


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("zoo/resnet18", {"conv1.weight", "fc.weight"}),
        ("torchvision/vit_b_16", {"class_token", "conv_proj.weight", "encoder.pos_embedding", "heads.head.weight"}),
    ],
)
def test_first_and_last_layer_and_what_is_no_weight_are_adamws(name, others):
    with torch.device("meta"):
        named = list(zoo.build(name, 10).named_parameters())
    hidden = hidden_weights(named)
    assert {key for key, p in named if p.dim() > 1} - set(hidden) == others
    assert hidden_weights(list(network().named_parameters())) == HIDDEN


def test_weight_decay_is_by_name_and_vectors_only_if_all_decay():
    for decay_all in (False, True):
        net = network()
        made = make_optimizer(net, dataclasses.replace(MUON, decay_all=decay_all))
        decayed = {id(p) for group in made.param_groups if group["weight_decay"] for p in group["params"]}
        rest = {name for name, p in net.named_parameters() if name not in HIDDEN and id(p) in decayed}
        weights = {"0.weight", "6.weight", "10.weight"}
        assert rest == ({name for name, _ in net.named_parameters()} - set(HIDDEN) if decay_all else weights)
        assert {id(matrix) for _, matrix in made.pairs} <= decayed and len(made.pairs) == 3


def test_a_network_without_hidden_weights_is_refused():
    with pytest.raises(ValueError, match=r"^optimizer muon is for weights between the first layer and the last, and"):
        make_optimizer(zoo.build("zoo/convnet1", 10), MUON)


class Interruption(Exception):
    pass


def test_a_training_that_is_cut_short_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "_SECONDS_BETWEEN_CHECKPOINTS", 0)
    settings = dataclasses.replace(MUON, ema=0.8, warmup_epochs=1)

    def train(net, name, stop=9):
        def report(entry):
            if entry["epoch"] == stop:
                raise Interruption

        stream, path = Stream(1, "test"), tmp_path / name
        return fit(net, settings, batches, F.cross_entropy, lambda _: {}, stream, path, report)

    whole, resumed = (zoo.channels_last(network()) for _ in range(2))
    averaged, _ = train(whole, "whole.pt")
    for stop in (2, 4):
        with pytest.raises(Interruption):
            train(zoo.channels_last(network()), "cut.pt", stop)
    again, _ = train(resumed, "cut.pt")
    for made, wanted in ((resumed, whole), (again, averaged)):
        for name, value in wanted.state_dict().items():
            assert torch.equal(made.state_dict()[name], value), name
    assert not torch.equal(whole[3].weight, network()[3].weight)
    with pytest.raises(ValueError, match=r"cut\.pt is not the state of this training; remove it"):
        settings = dataclasses.replace(settings, optimizer="adamw", epochs=9)
        train(zoo.channels_last(network()), "cut.pt")


def test_its_steps_are_no_cuda_graph():
    train = Train(**vars(MUON))
    assert (
        why_not_captured(Recipe(train=train), hard_labels) == "torch.optim.Muon takes its learning rate from the host"
    )


def test_a_teacher_and_a_student_are_trained_by_it(tmp_path, capsys):
    """From the command line: the teacher passes its gate. A student without hidden weights is refused in a line."""
    out = tmp_path / "digits"
    muon = ("--squeeze.optimizer", "muon", "--squeeze.epochs", "2", "--recover.iterations", "1", "--train.seeds", "1")
    muon += ("--train.optimizer", "muon", "--train.momentum", "0.95", "--evaluate.baselines", "random_hard")
    for stage in ("recover", "train"):
        assert fastcondense(stage, out, *muon, "--train.student", "zoo/convnet2_w32_in") == 0
    assert len(list(out.glob("students/*/*/seed0/student.json"))) == 2
    capsys.readouterr()
    assert fastcondense("train", out, *muon, "--train.student", "zoo/convnet1") == 1
    assert capsys.readouterr().err.startswith("fastcondense: optimizer muon is for weights between")
