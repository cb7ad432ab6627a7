"""Learning rates are those of torch and of the papers, and weight decay is for matrices, as published codes have it."""

import math

import pytest
import torch
from small import SmallNetwork

from fastcondense.networks.fit import learning_rate_factor, make_optimizer
from fastcondense.networks.zoo import build
from fastcondense.recipe.settings import Optimization


def factors(**settings):
    optimization = Optimization(**settings)
    return [learning_rate_factor(optimization, epoch) for epoch in range(optimization.epochs)]


def test_cosine_is_torchs_cosine_annealing():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 37)
    wanted = []
    for _ in range(37):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert factors(epochs=37) == pytest.approx(wanted, abs=1e-12)


def test_a_stretch_of_two_ends_at_half():
    made = factors(epochs=200, schedule_stretch=2.0)
    assert made == pytest.approx([math.cos(math.pi * e / 800) ** 2 for e in range(200)], abs=1e-12)
    assert made[0] == 1 and 0.5 < made[-1] < 0.505


def test_linear_and_constant():
    assert factors(epochs=4, schedule="linear") == [1, 0.75, 0.5, 0.25]
    assert factors(epochs=3, schedule="constant") == [1, 1, 1]


def test_a_stretched_line_and_the_cosine_end_where_the_specification_says():
    """EDC's schedules, zeta = 2, E = 300: cosine against line at e = 100, 150, 200, 299."""
    cosine, line = (factors(epochs=300, schedule=name, schedule_stretch=2.0) for name in ("cosine", "linear"))
    at = [100, 150, 200, 299]
    assert [round(cosine[e], 3) for e in at] == [0.933, 0.854, 0.75, 0.503]
    assert [round(line[e], 3) for e in at] == [0.833, 0.75, 0.667, 0.502]
    assert round(cosine[299], 4) == 0.5026


def test_cosine_drop_is_the_published_one():
    """EDC's schedules, zeta = 2, E = 300: 0.629 at e = 250, 0.103 at 251, 0.002 at 299."""
    made = factors(epochs=300, schedule="cosine_drop", schedule_stretch=2.0)
    assert [round(made[e], 3) for e in (250, 251, 299)] == [0.629, 0.103, 0.002]
    assert made[:251] == factors(epochs=300, schedule="cosine", schedule_stretch=2.0)[:251]
    last = 0.5 * (1 + math.cos(5 * math.pi / 12))
    assert made[251:] == pytest.approx([last * (1 - e / 300) for e in range(251, 300)], abs=1e-12)
    warm = factors(epochs=12 + 5, schedule="cosine_drop", warmup_epochs=5)
    assert warm[5:] == factors(epochs=12, schedule="cosine_drop")


@pytest.mark.parametrize(
    ("epochs", "shares", "gamma"),
    [(1000, (0.8, 0.9, 0.95), 0.5), (300, (2 / 3, 5 / 6), 0.2), (100, (0.29, 0.57, 0.58), 0.1)],
)
def test_multistep_is_torchs_multistep(epochs, shares, gamma):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    milestones = [round(share * epochs) for share in shares]
    schedule, wanted = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma), []
    for _ in range(epochs):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    made = factors(epochs=epochs, schedule="multistep", milestones=shares, gamma=gamma)
    assert made == pytest.approx(wanted, rel=1e-12)
    assert len(set(made)) == len(shares) + 1


def test_warmup_rises_linearly_from_a_hundredth_and_the_schedule_takes_the_rest():
    made = factors(epochs=9, warmup_epochs=5, schedule="linear")
    assert made == pytest.approx([0.01, 0.208, 0.406, 0.604, 0.802, 1, 0.75, 0.5, 0.25])
    assert factors(epochs=3, warmup_epochs=3) == pytest.approx([0.01, 0.34, 0.67])


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("decay_all", [False, True])
def test_weight_decay_is_for_matrices_unless_decay_all(optimizer, decay_all):
    net = SmallNetwork()
    net.conv.bias.requires_grad_(False)
    optimization = Optimization(optimizer=optimizer, decay_all=decay_all, weight_decay=0.07, lr=0.3, momentum=0.8)
    made = make_optimizer(net, optimization)
    assert type(made) is {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in made.param_groups for p in group["params"]}
    vectors = dict.fromkeys(("norm.weight", "norm.bias", "head.bias"), 0.07 if decay_all else 0.0)
    assert decay == {"conv.weight": 0.07, "head.weight": 0.07, **vectors}
    assert {group["lr"] for group in made.param_groups} == {0.3}
    wanted = {"momentum": 0.8} if optimizer == "sgd" else {"betas": (0.9, 0.999)}
    assert all(group[key] == value for group in made.param_groups for key, value in wanted.items())


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("timm/deit_tiny_patch16_224", {"cls_token", "pos_embed"}),
        ("torchvision/vit_b_16", {"class_token", "pos_embedding"}),
        ("torchvision/swin_t", {"relative_position_bias_table"}),
        ("torchvision/swin_v2_t", {"logit_scale"}),
        ("torchvision/convnext_tiny", {"layer_scale"}),
        ("timm/convnext_tiny", set()),
    ],
)
def test_weight_decay_is_not_for_what_is_no_weight(name, kept):
    """The parameters of more than one dimension that published codes do not decay, by the last part of their names."""
    with torch.device("meta"):
        net = build(name, 10)
    made = make_optimizer(net, Optimization(weight_decay=0.07))
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decayed, spared = (
        {names[id(p)] for group in made.param_groups if group["weight_decay"] == decay for p in group["params"]}
        for decay in (0.07, 0.0)
    )
    matrices = {name for name, parameter in net.named_parameters() if parameter.dim() > 1}
    assert decayed and decayed <= matrices and all(name.endswith("weight") for name in decayed)
    assert {name.rpartition(".")[2] for name in spared & matrices} == kept
    assert decayed | spared == set(names.values())
