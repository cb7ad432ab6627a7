"""What frozen backbones see in real images, and what condensed ones are made for: directions of classes, gradients."""

import dataclasses

import numpy as np
import pytest
import torch
from small import frozen_network
from torch.nn import functional as F

from fastcondense.data.jobs import Job
from fastcondense.data.real import training_batches
from fastcondense.log import Log
from fastcondense.recipe.means import Means
from fastcondense.recipe.recipe import load
from fastcondense.recover.feature_targets import backbone_of
from fastcondense.recover.head_gradients import HeadGradients, RealViews, head_gradient
from fastcondense.rng import Stream
from fastcondense.run import Run
from fastcondense.statistics.class_directions import Directions, class_directions, ridge_weights
from fastcondense.statistics.class_parts import clusters, part_means, part_views
from fastcondense.teachers.teacher import Teacher

CPU = torch.device("cpu")


def digits_run(tmp_path, **changes):
    settings = load("means/digits")
    recover = dataclasses.replace(settings.recover, **changes)
    run = Run(dataclasses.replace(settings, recover=recover), tmp_path / "run", log=Log(is_silent=True))
    net = frozen_network("zoo/convnet3_w32", 10)
    run.kept["teachers"] = [Teacher.of(net, "zoo/convnet3_w32", run.real.classes, range(10), settings.dataset)]
    return run


def seen(run, views, purpose):
    """What the network's head reads of two views of every training image, float64 [N, 32], and their classes."""
    net, kept, labels = frozen_network("zoo/convnet3_w32", 10).double(), [], []
    net.head.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    for view in range(2):
        what = run.real.train, run.recipe.dataset, views, Stream(run.recipe.seed, purpose)
        for images, of in training_batches(*what, view, 200, CPU):
            net(images.double())
            labels.append(of)
    return torch.cat(kept), torch.cat(labels)


def test_the_published_target_is_one_cosine_of_all_gradients(tmp_path):
    run = digits_run(tmp_path, means=Means(target="gradient", real_batch=30))
    (one,) = run.kept["teachers"]
    see, real, job = backbone_of(one, "fp32"), RealViews(run), Job(0, 0, 2, 0, 10)
    target = HeadGradients(run, see, real, job)
    for iteration in (0, 1, 50):
        target.refresh(iteration)
        images, labels = RealViews(run)(iteration)  # the views of an iteration do not depend on those before
        assert images.shape == (30, 3, 8, 8) and torch.equal(images, real(iteration)[0])
        head = target.head.double()
        assert 0.008 < float(head.std()) < 0.012
        seen = torch.rand(3, 10, 2, see(images).shape[1], generator=torch.Generator().manual_seed(iteration))
        flat = [(seen[v, k, s].double(), k) for v in range(3) for k in range(10) for s in range(2)]
        ours = head_gradient(torch.stack([z for z, _ in flat]), torch.tensor([k for _, k in flat]), head)
        wanted = head_gradient(see(images).double(), labels, head)
        cosine = (ours * wanted).sum() / ours.norm() / wanted.norm()
        torch.testing.assert_close(target(seen).double(), 1 - cosine, rtol=1e-5, atol=1e-6)
    assert not torch.equal(RealViews(run)(0)[1], RealViews(run)(1)[1])
    ids = torch.cat([RealViews(run)(k)[0] for k in (0, 1)]).flatten(1)
    assert len(ids.unique(dim=0)) > 55  # an order of all images, of which no two are the same
    with pytest.raises(ValueError, match="gradient needs all 10 classes in a job, which has 4"):
        HeadGradients(run, see, real, Job(0, 0, 1, 0, 4))


def test_class_means_are_those_of_all_views_and_kept(tmp_path):
    run = digits_run(tmp_path, means=Means(target="class"))
    (one,) = run.kept["teachers"]
    (found,) = class_directions(run, [one])
    z, y = seen(run, run.recipe.recover, "recover/means")
    assert y.bincount().tolist() == (2 * np.bincount(run.real.train.labels)).tolist()
    means = torch.stack([z[y == label].mean(0) for label in range(10)])
    torch.testing.assert_close(found.centre.double(), means.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.of_slots[:, 0].double(), means - means.mean(0), rtol=1e-5, atol=1e-6)
    (path,) = (tmp_path / "run").rglob("targets-*.safetensors")
    before = path.stat().st_mtime_ns
    again = class_directions(run, [one])[0].of_slots
    assert torch.equal(again, found.of_slots) and path.stat().st_mtime_ns == before
    assert not list((tmp_path / "run").rglob("parts*"))
    other = digits_run(tmp_path, means=Means(real_views=1))
    assert not torch.equal(class_directions(other, other.kept["teachers"])[0].of_slots, found.of_slots)


def test_ridge_directions_are_the_weights_of_ridge_regression(tmp_path):
    """Least squares of each class's indicator on the features of all views, with rows that penalise the weights."""
    run = digits_run(tmp_path, means=Means(target="ridge"))
    (one,) = run.kept["teachers"]
    (found,) = class_directions(run, [one])
    z, labels = seen(run, run.recipe.recover, "recover/means")
    y = F.one_hot(labels).double()
    z, y = z - z.mean(0), y / y.sum(0)  # a class's share of the images does not count
    penalty = (z.square().sum() / z.shape[1]).sqrt() * torch.eye(z.shape[1]).double()
    rows, aims = torch.cat((z, penalty)), torch.cat((y - y.mean(1, keepdim=True), torch.zeros(z.shape[1], 10).double()))
    weights = torch.linalg.lstsq(rows, aims).solution.T
    cosines = F.cosine_similarity(found.of_slots[:, 0].double(), weights, 1)
    assert float(cosines.min()) > 1 - 1e-6
    (path,) = (tmp_path / "run").rglob("targets-*.safetensors")
    before = path.stat().st_mtime_ns
    assert torch.equal(class_directions(run, [one])[0].of_slots, found.of_slots)
    assert path.stat().st_mtime_ns == before
    centred = Directions.between(torch.rand(10, 32)).of_slots
    torch.testing.assert_close(ridge_weights(centred, 3 * torch.eye(32)), centred / 6)


def test_of_several_images_each_is_for_a_part_of_its_class(tmp_path):
    """k-means: every view lies in the part whose mean is nearest, and the mean of those is the part's."""
    run = digits_run(tmp_path, means=Means(target="class"))
    run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, ipc=3))
    (one,) = run.kept["teachers"]
    (found,) = class_directions(run, [one])
    assert found.of_slots.shape == (10, 3, 32)
    z, y = seen(run, part_views(run.recipe.recover), "recover/parts/views")
    centre = torch.stack([z[y == label].mean(0) for label in range(10)]).mean(0)
    for label in range(10):
        mine = z[y == label]
        means = found.of_slots[label].double() + centre
        gaps = torch.cdist(mine, means)
        nearest, sizes = gaps.argmin(1), []
        for slot, mean in enumerate(means):
            own = mine[nearest == slot]
            torch.testing.assert_close(own.mean(0), mean, rtol=1e-4, atol=1e-4)
            sizes.append(len(own))
        assert sizes == sorted(sizes, reverse=True) and min(sizes) > 0
        assert gaps.min(1).values.square().mean() < 0.9 * mine.var(0, correction=0).sum()
    before = [path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("part-*.safetensors")]
    assert torch.equal(class_directions(run, [one])[0].of_slots, found.of_slots)
    assert len(before) == 10
    assert before == [path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("part-*.safetensors")]


def test_parts_of_two_backbones_are_of_the_same_views(tmp_path):
    run = digits_run(tmp_path, means=Means(target="class"))
    run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, ipc=2))
    (one,) = run.kept["teachers"]
    first, second = part_means(run, [one, dataclasses.replace(one, sha256="f" * 64)], [32, 32])
    assert torch.equal(first, second) and first.abs().max() > 1e-3


def test_a_class_without_as_many_parts_is_refused():
    rows = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    assert np.bincount(clusters(rows, 3, 0)).tolist() == [5, 5, 5]
    assert clusters(np.concatenate((rows, rows[:1])), 3, 0)[0] == 0
    with pytest.raises(ValueError, match="fewer than 4 of 15 differ"):
        clusters(rows, 4, 0)
