"""Collected target statistics against a two-pass float64 computation, and recover runs that match them."""

import dataclasses

import numpy as np
import pytest
import torch
from small import fastcondense, image_folder, shards

from fastcondense.data.jobs import Job
from fastcondense.data.real import squares
from fastcondense.log import Log
from fastcondense.networks import zoo
from fastcondense.recipe.recipe import Recipe, load
from fastcondense.recipe.recover import Recover
from fastcondense.recipe.settings import Dataset
from fastcondense.run import Run
from fastcondense.sets.condensed import shard_path
from fastcondense.statistics import collection, targets
from fastcondense.statistics.collector import Collector
from fastcondense.teachers.teacher import Teacher
from fastcondense.tensor_files import read_tensors

DATASET = Dataset(name="digits", image_size=18, resize=18)


def collect(teacher, batches):
    collector = Collector(teacher, [layer.name for layer in teacher.layers])
    for images in batches:
        collector.add(images, torch.zeros(len(images), dtype=torch.int64))
    return collector.targets()


def teacher(statistics):
    torch.manual_seed(0)
    net = zoo.build("zoo/convnet3_w32", 6).eval().requires_grad_(False)
    return Teacher.of(net, "convnet", [str(k) for k in range(6)], range(6), DATASET, statistics, 4), net


def test_a_run_collects_its_targets_once_and_matches_them(tmp_path):
    flags = "--recover.statistics bn conv patch --recover.patch-size 4 --recover.statistics-ema 0.5"
    flags = f"{flags} --recover.match-weight 1 --recover.iterations 60".split()
    assert fastcondense("recover", tmp_path / "r", *flags) == 0
    (path,) = (tmp_path / "r" / "teachers").rglob("targets-*.safetensors")
    before, made = path.stat().st_mtime_ns, shards(tmp_path / "r")
    next((tmp_path / "r" / "condensed").glob("shard-*1.safetensors")).unlink()
    assert fastcondense("recover", tmp_path / "r", *flags) == 0
    assert path.stat().st_mtime_ns == before and shards(tmp_path / "r") == made
    matching = torch.stack(
        [read_tensors(shard_path(tmp_path / "r" / "condensed", k), "losses")[0]["losses"] for k in range(len(made))]
    )[:, :, 2].numpy()
    assert np.isfinite(matching).all() and (matching[:, -1] < 0.7 * matching[:, 0]).all()


def test_all_teachers_are_collected_in_one_read_of_the_data(tmp_path, monkeypatch):
    reads = []
    original = collection.training_batches

    def counted(*arguments, **options):
        for batch in original(*arguments, **options):
            reads.append(len(batch[0]))
            yield batch

    monkeypatch.setattr(collection, "training_batches", counted)
    flags = ["--recover.statistics", "conv", "--squeeze.teachers", "zoo/convnet3_w32", "zoo/convnet1"]
    assert fastcondense("recover", tmp_path / "r", *flags) == 0
    assert sum(reads) == 1437 and len(list((tmp_path / "r" / "teachers").rglob("targets-*.safetensors"))) == 2


def test_a_layer_without_a_target_is_named():
    made, _ = teacher(("bn", "conv"))
    with pytest.raises(ValueError, match="no target for the statistics of its layer convs"):
        made.matched_targets()
    assert dataclasses.replace(made, targets=collect(made, [torch.randn(2, 3, 18, 18)])).matched_targets()


# --- class targets of a run ------------------------------------------------------------------------------------------


def digits_run(tmp_path, name="run", **recover):
    recipe = load("sre2l/digits")
    settings = Recover(**{"statistics": ("bn", "conv", "patch"), "patch_size": 4} | recover)
    run = Run(dataclasses.replace(recipe, recover=settings), tmp_path / name, log=Log())
    net = zoo.build("zoo/convnet3_w32", 10).eval().requires_grad_(False)
    torch.nn.init.normal_(net.norms[0].running_mean, generator=torch.Generator().manual_seed(0))
    args = run.real.classes, range(10), recipe.dataset, settings.statistics, settings.patch_size
    run.kept["teachers"] = [Teacher.of(net, "zoo/convnet3_w32", *args)]
    return run


BOTH = {"targets": ("global", "category"), "target_weights": (0.5, 0.5)}


def test_a_run_keeps_global_and_class_targets_in_one_file(tmp_path):
    torch.manual_seed(0)
    run = digits_run(tmp_path, **BOTH)
    targets.complete(run, run.kept["teachers"])
    (path,) = (tmp_path / "run").rglob("targets-*.safetensors")
    (teacher,) = run.kept["teachers"]
    assert list(teacher.class_targets) == [layer.name for layer in teacher.layers]
    for layer in teacher.layers:
        shapes = [vector.shape for vector in teacher.targets[layer.name]]
        assert [table.shape for table in teacher.class_targets[layer.name]] == [(10, *shape) for shape in shapes]
    mean = torch.stack([teacher.class_targets["convs.0"][0][k] for k in run.real.train.labels]).mean(0)
    torch.testing.assert_close(mean, teacher.targets["convs.0"][0], rtol=1e-4, atol=1e-5)
    before, made_at = teacher.class_targets, path.stat().st_mtime_ns
    teacher.class_targets, teacher.targets = {}, {n: v for n, v in teacher.targets.items() if "norm" in n}
    targets.complete(run, run.kept["teachers"])
    assert path.stat().st_mtime_ns == made_at
    assert all(torch.equal(a, b) for n in before for a, b in zip(before[n], teacher.class_targets[n], strict=True))


def test_files_are_named_after_what_decides_them(tmp_path):
    runs = [{}, BOTH, BOTH | {"class_variance": "full"}, BOTH | {"swapped_patches": True}]
    for settings in runs:
        torch.manual_seed(0)
        run = digits_run(tmp_path, **settings)
        targets.complete(run, run.kept["teachers"])
    assert len(list((tmp_path / "run").rglob("targets-*.safetensors"))) == 3  # swapped is the same, read otherwise
    assert run.kept["teachers"][0].swapped_patches


# --- random real images of classes ------------------------------------------------------------------------------------


def test_class_images_are_real_ones_of_their_classes_and_mirrored_by_half(tmp_path):
    run = digits_run(tmp_path)
    job = Job(0, first_slot=2, num_slots=4, first_class=3, num_classes=5)
    found = targets.class_images(run, "some", 3)(job)
    assert found.shape == (60, 3, 8, 8) and found.is_contiguous(memory_format=torch.channels_last)
    pixels, labels = squares(run.real.train, run.recipe.dataset, run.device)[0], run.real.train.labels
    real = run.normalize(pixels)
    ids, mirrored = [], []
    for image, label in zip(found, job.classes().repeat_interleave(3).tolist(), strict=True):
        members = np.flatnonzero(labels == label)
        same, flipped = ((real[members] - one).abs().amax((1, 2, 3)) < 1e-5 for one in (image, image.flip(2)))
        assert bool((same | flipped).any())
        ids.append(members[int((same | flipped).float().argmax())])
        mirrored.append(bool(flipped.any()) and not bool(same.any()))
    assert len(set(ids)) > 55 and 15 < sum(mirrored) < 45


def test_class_images_depend_on_class_and_slot_alone(tmp_path):
    run = digits_run(tmp_path)
    images = targets.class_images(run, "some", 2)
    large = images(Job(3, first_slot=0, num_slots=3, first_class=2, num_classes=4)).unflatten(0, (4, 3, 2))
    small = images(Job(9, first_slot=1, num_slots=2, first_class=4, num_classes=1)).unflatten(0, (1, 2, 2))
    assert torch.equal(large[2:3, 1:], small)
    other = targets.class_images(run, "another purpose", 2)
    assert not torch.equal(large.flatten(0, 2), other(Job(3, 0, 3, 2, 4)))


def test_more_class_images_than_there_are_and_files_that_cannot_be_read(tmp_path):
    root = image_folder(tmp_path / "data", classes=2, train=3)
    dataset = Dataset(name="folder", image_size=16, resize=18, on_error="skip", workers=0)
    run = Run(Recipe(dataset=dataset), tmp_path / "run", root)
    job = Job(0, first_slot=0, num_slots=3, first_class=0, num_classes=2)
    whole = targets.class_images(run, "some", 4)(job)
    assert whole.shape == (24, 3, 16, 16) and len(whole.flatten(1).unique(dim=0)) <= 12
    (root / "train" / "class0" / "1.png").write_bytes(b"no image")
    less = targets.class_images(Run(run.recipe, tmp_path / "again", root), "some", 4)(job)
    assert less.shape[0] == 20  # each of three images is seen four times
    rows = {row.numpy().tobytes() for row in whole}
    assert all(row.numpy().tobytes() in rows for row in less)
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of the 6 training images that some needs can be read"):
        targets.class_images(Run(run.recipe, tmp_path / "none", root), "some", 4)(job)
