"""What recover keeps for the report: the images on their way, and every layer's matching loss."""

import dataclasses

import numpy as np
import pytest
import torch
from kernel_checks import NoHostReads
from PIL import Image
from small import frozen_network
from torch import nn

from fastcondense.data.jobs import Job, jobs
from fastcondense.data.real import Normalization
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Committee, Recover
from fastcondense.recipe.settings import Dataset
from fastcondense.recover.by_statistics import ByStatistics, RecoverStep
from fastcondense.recover.recording import LAYER_ROWS, JobRecorder, SnapshotRecorder
from fastcondense.recover.schedule import turns
from fastcondense.sets.condensed import read_record, write_shard
from fastcondense.sets.record import Record
from fastcondense.teachers.teacher import Teacher
from fastcondense.tensor_files import read_tensors, write_tensors

CPU = torch.device("cpu")
DATASET = Dataset(name="digits", image_size=12, resize=12)


def recipe(**recover):
    settings = Recover(**{"iterations": 10, "lr": 0.1, "match_weight": 0.05, "batch_size": 6, "snapshots": 4} | recover)
    return Recipe(ipc=2, seed=5, dataset=DATASET, recover=settings)


def teachers(count=1, statistics=("bn",)):
    """Targets of convolutions are drawn, so that no distance is zero."""
    made = []
    for seed, name in zip(range(count), ("zoo/wrn16_2", "zoo/convnet2", "zoo/convnet1"), strict=False):
        net = frozen_network(name, 6, seed)
        teacher = Teacher.of(net, name, [str(k) for k in range(6)], range(6), DATASET, statistics, 4)
        for layer in teacher.layers:
            if layer.name not in teacher.targets:
                teacher.targets[layer.name] = tuple(torch.rand_like(vector) for vector in layer.moments)
        made.append(teacher)
    return made


def test_the_layers_losses_are_those_of_forward_hooks_in_float64():
    """Each iteration's images are taken from a step; the network's own BatchNorms tell what they see."""
    settings = recipe(batch_size=4)
    job, net = jobs(settings, 6)[0], frozen_network("zoo/wrn16_2", 6, 0).double()
    names = [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
    step, wanted = RecoverStep(settings, job, teachers(), CPU), []
    found = []

    def hook(module, inputs, _):
        x = inputs[0]
        var, mean = x.var((0, 2, 3), unbiased=False), x.mean((0, 2, 3))
        found.append(float(torch.norm(var - module.running_var) + torch.norm(mean - module.running_mean)))

    for name in names:
        net.get_submodule(name).register_forward_hook(hook)
    for iteration in range(10):
        top, left, height, width, flip, *_ = step.windows[iteration, 0].tolist()
        view = step.images[:, :, top : top + height, left : left + width].double()
        view = nn.functional.interpolate(view, (12, 12), mode="bilinear")
        net(view.flip(3) if flip else view)
        step(((0, 1.0),))
        wanted.append([0.05 * (10 if k == 0 else 1) * distance for k, distance in enumerate(found)])
        found.clear()
    (table,) = ByStatistics(settings, teachers(), CPU)(job).record.layers
    assert table.teacher == "zoo/wrn16_2" and list(table.names) == names
    assert table.iterations.tolist() == list(range(10)) and table.losses.dtype == torch.float32
    np.testing.assert_allclose(table.losses.numpy(), wanted, rtol=2e-5)


WAYS = {
    "one": {},
    "in turn": {"iterations": 11},
    "committee": {"committee": Committee(size=2, priors=(60.0, 63.0, 50.0))},
    "running mean, drops": {
        "statistics": ("bn", "conv", "patch"),
        "patch_size": 4,
        "statistics_ema": 0.8,
        "drop_rate": 0.5,
    },
    "stages": {"stages": (8, 12), "residual": 0.5},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_layers_losses_sum_to_the_matching_loss_that_is_logged(way):
    settings = recipe(**WAYS[way])
    count = {"one": 1, "in turn": 2, "committee": 3}.get(way, 1)
    frozen = teachers(count, settings.recover.statistics)
    for job in jobs(settings, 6):
        made = ByStatistics(settings, frozen, CPU)(job)
        total = torch.zeros(settings.recover.iterations)
        for table in made.record.layers:
            total[table.iterations] += table.losses.sum(1)
        np.testing.assert_allclose(total.numpy(), made.losses[:, 2].numpy(), rtol=1e-5)
        members = [
            frozen.index(teacher) for teacher in frozen if teacher.name in {t.teacher for t in made.record.layers}
        ]
        seen = {which for turn in turns(settings, count, job) for which, _ in turn}
        assert members == sorted(seen)


def test_long_jobs_keep_evenly_spread_iterations_of_each_teacher():
    settings, frozen = recipe(iterations=1001), teachers(2)
    job = jobs(settings, 6)[0]
    recorder = JobRecorder(settings, job, frozen, turns(settings, 2, job), CPU)
    for which, moments in enumerate(recorder.moments):
        assert len(moments) == LAYER_ROWS and {t % 2 for t in moments} == {which}
        assert moments[0] == which and moments[-1] == 1000 - which
        gaps = np.diff(moments)
        assert gaps.min() >= 14 and gaps.max() <= 16


def test_recording_changes_no_bit_and_the_host_reads_nothing():
    settings = recipe()
    job = jobs(settings, 6)[0]
    images, losses, record = ByStatistics(settings, teachers(), CPU)(job)
    step = RecoverStep(settings, job, teachers(), CPU)
    recorder = JobRecorder(settings, job, step.teachers, turns(settings, 1, job), CPU)
    kept = []
    for iteration in range(10):
        kept.append(Normalization.of(DATASET, CPU).pixels(step.images))
        with NoHostReads():
            recorder.before(iteration, step.images)
        step(((0, 1.0),))
        with NoHostReads():
            recorder.after(iteration, step.layer_losses)
    assert torch.equal(step.losses, losses) and torch.equal(Normalization.of(DATASET, CPU).pixels(step.images), images)
    assert record.snapshots.iterations.tolist() == [0, 2, 5, 7] and record.snapshots.classes.tolist() == list(range(6))
    assert torch.equal(record.snapshots.images, torch.stack([kept[t] for t in (0, 2, 5, 7)]))
    none = ByStatistics(recipe(snapshots=0), teachers(), CPU)(job)
    assert torch.equal(none.images, images) and none.record.snapshots is None


def test_large_images_are_shrunk_as_pillow_does():
    settings = dataclasses.replace(recipe(), dataset=Dataset(image_size=150, resize=150))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 150, 150), generator=generator, dtype=torch.uint8)
    recorder = SnapshotRecorder(settings, Job(0, 0, 1, 0, 2), CPU)
    recorder.take(Normalization.of(settings.dataset, CPU)(pixels))
    small = recorder.snapshots().images[0]
    assert small.shape == (2, 3, 64, 64)
    for image, made in zip(pixels, small, strict=True):
        wanted = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((64, 64), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(wanted).astype(int) - made.permute(1, 2, 0).numpy()).max() <= 1


@pytest.mark.parametrize(
    ("job", "classes", "rows"),
    [
        (Job(0, 0, 1, 0, 4), [0, 1, 2, 3], [0, 1, 2, 3]),
        (Job(1, 0, 3, 18, 5), [18, 19], [0, 3]),  # three slots a class; the twentieth class is the last that is shown
        (Job(2, 0, 1, 20, 4), [], []),
        (Job(3, 1, 1, 0, 4), [], []),
    ],
)
def test_snapshots_are_of_the_first_slot_of_the_first_classes(job, classes, rows):
    recorder = SnapshotRecorder(recipe(), job, CPU)
    assert recorder.classes.tolist() == classes and torch.arange(job.num_images)[recorder.rows].tolist() == rows
    assert bool(recorder.moments) == bool(classes)


def test_shards_hold_it_and_shards_without_are_read(tmp_path):
    settings = recipe()
    made = ByStatistics(settings, teachers(), CPU)(jobs(settings, 6)[0])
    write_shard(tmp_path, jobs(settings, 6)[0], made.images, made.losses, {"seconds": "1"}, made.record)
    read = read_record(tmp_path, 0)
    for name, tensor in vars(made.record.snapshots).items():
        assert torch.equal(getattr(read.snapshots, name), tensor)
    (table,), (wanted,) = read.layers, made.record.layers
    assert (table.teacher, table.names) == (wanted.teacher, wanted.names)
    assert torch.equal(table.losses, wanted.losses) and torch.equal(table.iterations, wanted.iterations)
    tensors, metadata = read_tensors(tmp_path / "shard-00000.safetensors")
    old = {name: tensor for name, tensor in tensors.items() if "/" not in name}
    write_tensors(tmp_path / "shard-00001.safetensors", old, {"seconds": metadata["seconds"]})
    assert read_record(tmp_path, 1) == Record()


def test_snapshots_are_no_part_of_what_a_run_is():
    with_them, without = (recipe(snapshots=count) for count in (8, 0))
    assert with_them != without and with_them.sha256() == without.sha256()
