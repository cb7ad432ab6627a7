"""Pruned statistics: gradient norms and the choice against brute force, and a pruned teacher against the whole one."""

import copy
import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from small import frozen_network

from fastcondense.data.jobs import jobs
from fastcondense.kernels.patch_moments.definition import patch_moments_reference
from fastcondense.log import Log
from fastcondense.recipe.recipe import load
from fastcondense.recipe.settings import Dataset
from fastcondense.recover.by_statistics import ByStatistics
from fastcondense.run import Run
from fastcondense.statistics import pruning, targets
from fastcondense.statistics.matching import Matching, layer_weights
from fastcondense.teachers.moments import BatchNormKeeper, ConvolutionTap, take_patch_moments
from fastcondense.teachers.teacher import Teacher

STATISTICS = ("bn", "conv", "patch")


def network(name, num_classes=10):
    return frozen_network(name, num_classes)


def make(name, size, p, statistics=STATISTICS):
    dataset = Dataset(name="digits", image_size=size, resize=size)
    return Teacher.of(network(name), name, "0123456789", range(10), dataset, statistics, p)


def random_targets(teacher, size):
    generator = torch.Generator().manual_seed(3)
    black = torch.zeros(1, 3, size, size)
    return [tuple(torch.rand(len(v), generator=generator) for v in layer) for layer in teacher.batch_targets(black)]


def distance(net, name, images, wanted, p):
    """Of one layer, through the plain network."""
    found = []
    module = net.get_submodule(name)
    handle = module.register_forward_pre_hook(lambda _, x: found.append(x[0].clone()))
    net(images)
    handle.remove()
    (x,) = found
    vectors = [x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0), *patch_moments_reference(x, p)]
    return sum((vector - other.double()).norm() for vector, other in zip(vectors, wanted, strict=False))


def test_gradient_norms_are_those_of_each_layers_distance_alone():
    name, size, p = "zoo/wrn16_2", 14, 4
    teacher, net = make(name, size, p), network(name).double()
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    wanted = random_targets(teacher, size)
    found = pruning.gradient_norms(teacher, Matching([(1.0, wanted)], layer_weights(len(wanted))), images.clone())
    assert teacher.layers[14].name == "blocks.2.shortcut" and teacher.layers[14].parts == teacher.layers[11].parts
    for k, (layer, vectors) in enumerate(zip(teacher.layers, wanted, strict=True)):
        leaf = images.double().requires_grad_()
        (gradient,) = torch.autograd.grad(distance(net, layer.name, leaf, vectors, p) * (1 if k else 10), leaf)
        assert found[k] == pytest.approx(float(gradient.norm()), rel=2e-5), layer.name


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_the_cheapest_of_all(seed):
    generator = np.random.default_rng(seed)
    shares, costs = generator.random(8), generator.random(9)
    maps = generator.random((8, 9)) < 0.25
    maps[np.arange(8), generator.integers(0, 9, 8)] = True
    for least in (0.2, 0.5, 0.9, 0.999):
        kept = pruning.choose(shares, maps, costs, least)
        subsets = [np.array(bits, bool) for bits in itertools.product((0, 1), repeat=8) if bits[0]]
        enough = [own for own in subsets if shares[own].sum() >= least * shares.sum()]
        cheapest = min(costs[maps[own].any(0)].sum() for own in enough)
        assert kept[0] and shares[kept].sum() >= (least - 1e-6) * shares.sum()
        assert costs[maps[kept].any(0)].sum() == pytest.approx(cheapest, rel=1e-6)


def test_costs_are_bytes_and_a_map_is_paid_for_once():
    teacher = make("torchvision/resnet18", 64, 16, ("bn", "conv"))
    maps, costs = pruning.map_costs(teacher, 64)
    row = {layer.name: maps[k] for k, layer in enumerate(teacher.layers)}
    assert row["conv1"] @ costs == 4 * 4 * 3 * 64 * 64  # a tap passes the image four times
    assert row["bn1"] @ costs == 4 * 64 * 32 * 32  # the map before the pooling, once
    assert row["layer1.0.conv1"] @ costs == 4 * 64 * 16 * 16  # and the one behind it
    assert (row["layer2.0.conv1"] == row["layer2.0.downsample.0"]).all()
    assert maps.shape == (40, 37) and (costs > 0).all()


# --- pruned teachers -------------------------------------------------------------------------------------------------


def counted(teacher, images):
    """How many moments a forward really takes."""
    teacher.fused(images)
    take_patch_moments(teacher.keepers)
    count = sum(len(keeper.kept) for keeper in teacher.keepers)
    for keeper in teacher.keepers:
        keeper.forget()
    return count


@pytest.mark.parametrize("names", [["conv1", "layer2.0.downsample.0", "layer3.1.bn2"], ["conv1"], ["bn1", "conv1"]])
def test_a_restricted_teacher_has_the_same_moments_of_fewer_layers_and_takes_no_others(names):
    whole = make("torchvision/resnet18", 48, 16)
    images = torch.randn(2, 3, 48, 48).contiguous(memory_format=torch.channels_last)
    logits, moments = whole(images)
    pruned = copy.deepcopy(whole)
    pruning.restrict(pruned, names)
    assert [layer.name for layer in pruned.layers] == [layer.name for layer in whole.layers if layer.name in names]
    expected = {layer.name: vectors for layer, vectors in zip(whole.layers, moments, strict=True)}
    pruned_logits, found = pruned(images)
    torch.testing.assert_close(pruned_logits, logits, rtol=1e-5, atol=1e-5)
    for layer, vectors in zip(pruned.layers, found, strict=True):
        for vector, other in zip(vectors, expected[layer.name], strict=True):
            torch.testing.assert_close(vector, other, rtol=1e-5, atol=1e-6)
    taps = [keeper for keeper in pruned.keepers if isinstance(keeper, ConvolutionTap)]
    norms = [keeper for keeper in pruned.keepers if isinstance(keeper, BatchNormKeeper)]
    num_maps = len({"layer2.0" if name.startswith("layer2.0") else name for name in names if "bn" not in name})
    assert sum(tap.patch_size is not None for tap in taps) == num_maps
    assert sum(tap.has_channels for tap in taps) + sum(norm.keeps_output for norm in norms) == num_maps
    assert counted(pruned, images) == len(norms) + 2 * num_maps < counted(whole, images)
    silent = next(tap for tap in taps if tap.patch_size is None and not tap.has_channels)
    assert silent(images) is images


def digits_run(tmp_path, **recover):
    recipe = load("sre2l/digits")
    given = {"statistics": STATISTICS, "patch_size": 4, "match_weight": 1.0, "iterations": 60, "lr": 0.1}
    recipe = dataclasses.replace(recipe, recover=dataclasses.replace(recipe.recover, **given | recover))
    run = Run(recipe, tmp_path / "run", log=Log())
    run.kept["teachers"] = [make("zoo/convnet3_w32", 8, 4)]
    return run


def test_everything_is_matched_by_default(tmp_path):
    run = digits_run(tmp_path)
    targets.complete(run, run.kept["teachers"])
    layers, switches = (
        list(run.kept["teachers"][0].layers),
        [vars(keeper).copy() for keeper in run.kept["teachers"][0].keepers],
    )
    pruning.prune(run, run.kept["teachers"])
    assert (
        run.kept["teachers"][0].layers == layers
        and [vars(keeper) for keeper in run.kept["teachers"][0].keepers] == switches
    )
    assert not list((tmp_path / "run").rglob("pruning-*"))


TARGETS = {"targets": ("global", "category"), "target_weights": (0.5, 0.25)}


@pytest.mark.parametrize("settings", [{}, TARGETS], ids=["global", "all"])
def test_a_run_keeps_the_cheapest_layers_with_the_share_and_still_matches(tmp_path, settings):
    run = digits_run(tmp_path, gradient_share=0.97, **settings)
    targets.complete(run, run.kept["teachers"])
    teacher, whole = run.kept["teachers"][0], list(run.kept["teachers"][0].layers)
    shares, (maps, costs) = pruning.gradient_shares(run, teacher), pruning.map_costs(teacher, 8)
    assert shares.sum() == pytest.approx(1) and (shares > 0).all()
    pruning.prune(run, run.kept["teachers"])
    subsets = [np.array(bits, bool) for bits in itertools.product((0, 1), repeat=len(whole)) if bits[0]]
    best = min((own for own in subsets if shares[own].sum() >= 0.97), key=lambda own: costs[maps[own].any(0)].sum())
    kept = [layer.name for layer, is_kept in zip(whole, best, strict=True) if is_kept]
    assert [layer.name for layer in teacher.layers] == kept and 1 < len(kept) < len(whole)
    (path,) = (tmp_path / "run").rglob("pruning-*.json")
    tree = json.loads(path.read_text())
    assert [entry["name"] for entry in tree["layers"] if entry["is_matched"]] == kept
    assert tree["gradient_share"] == pytest.approx(shares[best].sum()) and tree["cost_share"] < 1
    made_at = path.stat().st_mtime_ns
    for teachers in (run.kept["teachers"], [make("zoo/convnet3_w32", 8, 4)]):  # again, and a process that goes on
        targets.complete(run, teachers)
        pruning.prune(run, teachers)
        assert [layer.name for layer in teachers[0].layers] == kept and path.stat().st_mtime_ns == made_at
    if not settings:
        images, losses, *_ = ByStatistics(run.recipe, run.kept["teachers"], run.device)(jobs(run.recipe, 10)[0])
        assert images.dtype == torch.uint8 and float(losses[-1, 2]) < 0.8 * float(losses[0, 2])
