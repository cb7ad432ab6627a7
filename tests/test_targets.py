"""Collected target statistics against a two-pass float64 computation, and recover runs that match them."""

import dataclasses

import numpy as np
import pytest
import torch
from small import fastcondense, shards
from torch import nn

from fastcondense import targets, zoo
from fastcondense.condensed import read_losses
from fastcondense.settings import Dataset
from fastcondense.targets import Collector
from fastcondense.teacher import Teacher

DATASET = Dataset(name="digits", image_size=18, resize=18)


def collect(teacher, batches):
    collector = Collector(teacher, [layer.name for layer in teacher.layers])
    for images in batches:
        collector.add(images)
    return collector.targets()


def teacher(statistics):
    torch.manual_seed(0)
    net = zoo.build("zoo/convnet3_w32", 6).eval().requires_grad_(False)
    return Teacher.of(net, "convnet", [str(k) for k in range(6)], range(6), DATASET, statistics, 4), net


@pytest.mark.parametrize("sizes", [[24], [7, 7, 7, 3], [1] * 24])
def test_equals_the_statistics_of_all_images_at_once(sizes):
    made, net = teacher(("conv", "patch"))
    images = 2 + torch.randn(24, 3, 18, 18)
    inputs = {}
    for name, module in net.double().named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, args, __, name=name: inputs.update({name: args[0]}))
    net(images.double())
    found = collect(made, images.split(sizes))
    assert list(found) == list(inputs)
    for name, x in inputs.items():
        mean, var, patch_mean, patch_var = found[name]
        for vector, truth in ((mean, x.mean((0, 2, 3))), (var, x.var((0, 2, 3), correction=0))):
            assert float((vector.double() - truth).norm() / truth.norm()) < 1e-5  # of the network's own rounding
        tiles = -(-x.shape[2] // 4) * -(-x.shape[3] // 4)
        assert patch_mean.shape == patch_var.shape == (tiles,)


def test_batches_of_any_size_give_the_same_targets():
    made, _ = teacher(("bn", "conv", "patch"))
    images = torch.randn(20, 3, 18, 18)
    one, many = collect(made, [images]), collect(made, images.split(6))
    for name in one:
        for vector, other in zip(one[name], many[name], strict=True):
            torch.testing.assert_close(vector, other, rtol=2e-5, atol=1e-6)


def test_a_run_collects_its_targets_once_and_matches_them(tmp_path):
    flags = "--recover.statistics bn conv patch --recover.patch-size 4 --recover.statistics-ema 0.5"
    flags = f"{flags} --recover.match-weight 1 --recover.iterations 60".split()
    assert fastcondense("recover", tmp_path / "r", *flags) == 0
    (path,) = (tmp_path / "r" / "teachers").rglob("targets-*.safetensors")
    before, made = path.stat().st_mtime_ns, shards(tmp_path / "r")
    next((tmp_path / "r" / "condensed").glob("shard-*1.safetensors")).unlink()
    assert fastcondense("recover", tmp_path / "r", *flags) == 0
    assert path.stat().st_mtime_ns == before and shards(tmp_path / "r") == made
    matching = read_losses(tmp_path / "r" / "condensed", len(made))[:, :, 2].numpy()
    assert np.isfinite(matching).all() and (matching[:, -1] < 0.7 * matching[:, 0]).all()


def test_all_teachers_are_collected_in_one_read_of_the_data(tmp_path, monkeypatch):
    reads = []
    original = targets.training_batches

    def counted(*arguments, **options):
        for batch in original(*arguments, **options):
            reads.append(len(batch[0]))
            yield batch

    monkeypatch.setattr(targets, "training_batches", counted)
    flags = ["--recover.statistics", "conv", "--squeeze.teachers", "zoo/convnet3_w32", "zoo/convnet1"]
    assert fastcondense("recover", tmp_path / "r", *flags) == 0
    assert sum(reads) == 1437 and len(list((tmp_path / "r" / "teachers").rglob("targets-*.safetensors"))) == 2


def test_a_layer_without_a_target_is_named():
    made, _ = teacher(("bn", "conv"))
    with pytest.raises(ValueError, match="no target for the statistics of its layer convs"):
        made.matched_targets()
    assert dataclasses.replace(made, targets=collect(made, [torch.randn(2, 3, 18, 18)])).matched_targets()
