"""Recover by features against a float64 transcription of the published loop on an unfused network."""

import dataclasses

import numpy as np
import pytest
import torch
from small import frozen_network
from torch.nn import functional as F

from fastcondense.data.jobs import jobs
from fastcondense.data.real import Normalization
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Features, Initial, Recover
from fastcondense.recipe.settings import Dataset
from fastcondense.recover import by_features
from fastcondense.recover.by_features import ByFeatures, FeatureStep, augmentation_table, tile_windows
from fastcondense.teachers.cut import Cut
from fastcondense.teachers.teacher import Teacher
from fastcondense.views.augment import CUT_BOTTOM, CUT_LEFT, CUT_RIGHT, CUT_TOP, FLIP, SHIFT_X, SHIFT_Y

CPU = torch.device("cpu")
LAYER = "layer3"


def recipe(size=16, factor=2, iterations=5, ipc=3):
    dataset = Dataset(name="digits", image_size=size, resize=size, mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.25))
    recover = Recover(
        objective="features",
        iterations=iterations,
        lr=0.01,
        betas=(0.9, 0.999),
        slots_per_job=0,
        classes_per_job=1,
        initial=Initial(kind="mosaic", factor=factor),
        features=Features(layer=LAYER),
    )
    return Recipe(ipc=ipc, seed=5, dataset=dataset, recover=recover)


def network():
    return frozen_network("zoo/resnet20", 4)


def teacher(settings):
    return Teacher.of(network(), "resnet20", range(4), range(4), settings.dataset)


def pixels(settings, job):
    """Anchors uint8 [factor^2 ipc, 3, S, S] and mosaics of them, by loops; every image is another one."""
    size, factor, count = settings.dataset.image_size, settings.recover.initial.factor, job.num_images
    generator = torch.Generator().manual_seed(job.index)
    coarse = torch.rand(count * factor**2, 3, 4, 4, generator=generator)
    anchors = (255 * F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)).round().to(torch.uint8)
    mosaics = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    edges = [0, *np.cumsum([size // factor + (k < size % factor) for k in range(factor)]).tolist()]
    for k in range(factor**2):
        (top, bottom), (left, right) = (edges[i : i + 2] for i in divmod(k, factor))
        for i in range(count):
            tile = F.interpolate(anchors[k * count + i][None].float(), (bottom - top, right - left), mode="nearest")
            mosaics[i, :, top:bottom, left:right] = tile[0].to(torch.uint8)
    return anchors, mosaics, edges


def inputs(settings):
    """The callables that a recoverer takes."""
    normalize = Normalization.of(settings.dataset, CPU)
    return (lambda job: normalize(pixels(settings, job)[1])), (lambda job: normalize(pixels(settings, job)[0]))


def step_of(settings):
    job = jobs(settings, 4)[1]
    step = FeatureStep(settings, job, Cut(teacher(settings), LAYER), CPU)
    step.load(job, *inputs(settings))
    return step, job


def published_loss(settings, job, delta, t, net):
    """Loss of iteration t in the dtype of delta: split, enlarge, concatenate, normalise, augment, whole forward."""
    size, factor = settings.dataset.image_size, settings.recover.initial.factor
    anchors, mosaics, edges = pixels(settings, job)
    images = mosaics.double() / 255 + delta
    tiles = []
    for k in range(factor**2):
        (top, bottom), (left, right) = (edges[i : i + 2] for i in divmod(k, factor))
        tiles.append(F.interpolate(images[:, :, top:bottom, left:right], (size, size), mode="bilinear"))
    x = torch.cat([anchors.double() / 255, *tiles])
    mean, std = (
        torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (settings.dataset.mean, settings.dataset.std)
    )
    x = (x - mean) / std
    row = augmentation_table(settings, job)[t, 0].int().tolist()
    x = x.flip(3) if row[FLIP] else x
    down, right = row[SHIFT_Y], row[SHIFT_X]
    x = F.pad(x, (right, -right, down, -down))
    mask = torch.ones(size, size, dtype=torch.float64)
    mask[row[CUT_TOP] : row[CUT_BOTTOM], row[CUT_LEFT] : row[CUT_RIGHT]] = 0
    found = []
    handle = net.get_submodule(LAYER).register_forward_pre_hook(lambda _, args: found.append(args[0]))
    net(x * mask)
    handle.remove()
    wanted, ours = found[0].flatten(1).chunk(2)
    return (wanted - ours).abs().mean(1).sum()


@pytest.mark.parametrize(("size", "factor"), [(16, 2), (17, 2), (20, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient_equal_float64(size, factor, dtype):
    settings = recipe(size, factor)
    step, job = step_of(settings)
    delta = 0.1 * torch.randn(step.delta.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    if dtype == torch.float64:
        step.observer.double()
        step.anchors, step.initial = step.anchors.double(), step.initial.double()
    step.delta = delta
    for t in range(3):
        step.step.fill_(t)
        loss, gradient = step.loss_and_gradient()
        exact = delta.double().requires_grad_()
        expected = published_loss(settings, job, exact, t, network().double())
        (truth,) = torch.autograd.grad(expected, exact)
        assert gradient.dtype == dtype and abs(loss.double() - expected) < 1e-6 * expected
        # A difference of features near zero that rounding turns to the other sign moves the gradient by a whole piece.
        assert (gradient - truth).norm() < (1e-6 if dtype == torch.float64 else 1e-2) * truth.norm()


@pytest.mark.parametrize("batch_size", [1, 5, 7])
def test_parts_equal_the_whole(batch_size, monkeypatch):
    (whole, _), (parts, _) = step_of(recipe(17)), step_of(recipe(17))
    loss, gradient = whole.loss_and_gradient()
    monkeypatch.setattr(by_features, "_PAIRS", batch_size)
    sum_of_losses, sum_of_gradients = parts.loss_and_gradient()
    assert abs(loss - sum_of_losses) < 1e-6 * loss
    assert (gradient - sum_of_gradients).norm() < 1e-6 * gradient.norm()


def test_equals_the_published_loop():
    settings = recipe(17)
    job, net = jobs(settings, 4)[2], network().double()
    delta = torch.zeros(job.num_images, 3, 17, 17, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([delta], lr=0.01, betas=(0.9, 0.999), weight_decay=0.01)
    losses = []
    for t in range(5):
        loss = published_loss(settings, job, delta, t, net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append([loss.item(), 0, loss.item()])
    images, ours, *_ = ByFeatures(settings, [teacher(settings)], CPU, *inputs(settings))(job)
    np.testing.assert_allclose(ours, losses, rtol=1e-4)
    expected = (255 * (pixels(settings, job)[1].double() / 255 + delta.detach())).clamp(0, 255).round()
    difference = (images.double() - expected).abs()
    assert images.dtype == torch.uint8 and difference.max() <= 1 and (difference > 0).double().mean() < 0.01
    assert (images != pixels(settings, job)[1]).double().mean() > 0.5


def test_no_iterations_keep_the_mosaics():
    settings = recipe(17, iterations=0)
    job = jobs(settings, 4)[0]
    images, losses, *_ = ByFeatures(settings, [teacher(settings)], CPU, *inputs(settings))(job)
    assert torch.equal(images, pixels(settings, job)[1]) and losses.shape == (0, 3)


def test_a_job_does_not_depend_on_the_one_before():
    settings = recipe()
    first, second = jobs(settings, 4)[:2]
    recoverer = ByFeatures(settings, [teacher(settings)], CPU, *inputs(settings))
    recoverer(first)
    alone = ByFeatures(settings, [teacher(settings)], CPU, *inputs(settings))(second)
    for one, other in zip(recoverer(second)[:2], alone[:2], strict=True):
        assert torch.equal(one, other)


def test_every_iteration_and_job_has_its_own_augmentation():
    settings = recipe(iterations=50)
    tables = [augmentation_table(settings, job) for job in jobs(settings, 4)[:2]]
    assert tables[0].shape == (50, 1, 13) and len(tables[0].unique(dim=0)) > 40
    assert not torch.equal(*tables)
    other = dataclasses.replace(settings, seed=6)
    assert not torch.equal(tables[0], augmentation_table(other, jobs(other, 4)[0]))


def test_tiles_cover_the_image():
    windows = tile_windows(17, 3)
    assert windows[:, :4].tolist()[:4] == [[0, 0, 6, 6], [0, 6, 6, 6], [0, 12, 6, 5], [6, 0, 6, 6]]
    covered = torch.zeros(17, 17)
    for top, left, height, width, *rest in windows.tolist():
        covered[top : top + height, left : left + width] += 1
        assert not any(rest)
    assert bool((covered == 1).all())


def test_divergence_is_reported():
    settings = recipe(iterations=1)
    initial, anchors = inputs(settings)
    broken = ByFeatures(settings, [teacher(settings)], CPU, initial, lambda job: anchors(job) * float("nan"))
    with pytest.raises(ValueError, match="diverged in job 0"):
        broken(jobs(settings, 4)[0])
