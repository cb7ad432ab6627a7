"""Recover against a float64 transcription of the specification (section 1.2), and its contract on jobs."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image
from small import frozen_network
from torch import nn
from torch.nn import functional as F

from fastcondense.data.jobs import jobs
from fastcondense.data.real import Normalization, stored
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Recover
from fastcondense.recipe.settings import Dataset
from fastcondense.recover.by_statistics import ByStatistics, RecoverStep
from fastcondense.recover.schedule import crop_lower_bounds, learning_rates, window_table
from fastcondense.teachers.teacher import Teacher

CPU = torch.device("cpu")
ALONE = ((0, 1.0),)  # the turn of the first teacher
DATASET = Dataset(name="digits", image_size=12, resize=12, mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.25))


def recipe(**recover):
    settings = Recover(**{"iterations": 6, "lr": 0.1, "match_weight": 0.05, "batch_size": 4, "roll": (-2, 2)} | recover)
    return Recipe(ipc=2, seed=5, dataset=DATASET, recover=settings)


def network(seed=0):
    return frozen_network("zoo/wrn16_2", 6, seed)


def teacher(seed=0):
    return Teacher.of(network(seed), f"wrn-{seed}", [str(k) for k in range(6)], range(6), DATASET)


def published_step(settings: Recipe, nets, job, iterations):
    """The published loop in float64: forward hooks, explicit crop by interpolation, Adam, per-channel clip."""
    size = settings.dataset.image_size
    images = RecoverStep(settings, job, [teacher()], CPU).images.double().clone().requires_grad_()
    table = window_table(settings, job)
    optimizer = torch.optim.Adam([images], lr=settings.recover.lr, betas=settings.recover.betas, eps=1e-8)
    mean = torch.tensor(DATASET.mean, dtype=torch.float64)[:, None, None]
    std = torch.tensor(DATASET.std, dtype=torch.float64)[:, None, None]
    losses = []
    for t in range(iterations):
        net = nets[t % len(nets)]
        optimizer.param_groups[0]["lr"] = (
            0.5 * settings.recover.lr * (1 + math.cos(math.pi * t / settings.recover.iterations))
        )
        top, left, height, width, flip, roll_y, roll_x = table[t, 0].tolist()
        view = images[:, :, top : top + height, left : left + width]
        view = F.interpolate(view, (size, size), mode="bilinear", align_corners=False)
        view = view.flip(3) if flip else view
        view = torch.roll(view, (roll_y, roll_x), (2, 3))
        distances = []

        def hook(module, inputs, _, distances=distances):
            x = inputs[0]
            distances.append(
                torch.norm(module.running_var - x.var((0, 2, 3), unbiased=False))
                + torch.norm(module.running_mean - x.mean((0, 2, 3)))
            )

        handles = [m.register_forward_hook(hook) for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        entropy = F.cross_entropy(net(view), job.classes())
        for handle in handles:
            handle.remove()
        matching = settings.recover.match_weight * (10 * distances[0] + sum(distances[1:]))
        loss = entropy + matching
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            images.copy_(torch.maximum(torch.minimum(images, (1 - mean) / std), -mean / std))
        losses.append([loss.item(), entropy.item(), matching.item()])
    return images.detach(), np.array(losses)


@pytest.mark.parametrize("crop_scale", [(0.3, 1.0), (1.0, 1.0)])
def test_equals_the_published_loop(crop_scale):
    settings = recipe(crop_scale=crop_scale)
    job = jobs(settings, 6)[0]
    expected, losses = published_step(settings, [network().double()], job, 6)
    step = RecoverStep(settings, job, [teacher()], CPU)
    for _ in range(6):
        step(ALONE)
    np.testing.assert_allclose(step.losses.numpy(), losses, rtol=2e-5)
    # Adam divides by the gradient's own size, so a pixel without gradient amplifies rounding: compare as a whole.
    assert float((step.images.double() - expected).norm() / expected.norm()) < 1e-4


def test_one_image_gradient_equals_float64():
    settings = recipe()
    job = jobs(settings, 6)[0]
    step = RecoverStep(settings, job, [teacher()], CPU)
    images = step.images.clone().requires_grad_()
    (ours,) = torch.autograd.grad(step.loss(step.canvas, images, ALONE, step.windows[0])[0], images)
    double = Teacher.of(network(), "wrn", [str(k) for k in range(6)], range(6), DATASET)
    double.fused.double()
    exact = RecoverStep(settings, job, [double], CPU)
    images64 = step.images.double().requires_grad_()
    (truth,) = torch.autograd.grad(exact.loss(exact.canvas, images64, ALONE, step.windows[0])[0], images64)
    assert float((ours.double() - truth).norm() / truth.norm()) < 1e-5


def test_teachers_take_turns():
    settings = recipe()
    job = jobs(settings, 6)[0]
    expected, losses = published_step(settings, [network(0).double(), network(1).double()], job, 6)
    images, ours, *_ = ByStatistics(settings, [teacher(0), teacher(1)], CPU)(job)
    np.testing.assert_allclose(ours.numpy(), losses, rtol=2e-5)
    pixels = Normalization.of(DATASET, CPU).pixels(expected.float())
    assert (images.int() - pixels.int()).abs().max() <= 1 and images.dtype == torch.uint8


def test_schedules():
    rates = learning_rates(Recover(iterations=4, lr=0.25))
    torch.testing.assert_close(
        rates, torch.tensor([0.25, 0.125 * (1 + math.sqrt(0.5)), 0.125, 0.125 * (1 - math.sqrt(0.5))])
    )
    cosine = crop_lower_bounds(Recover(iterations=10, curriculum="cosine"))
    np.testing.assert_allclose(cosine, [0.08 + 0.46 * (1 + math.cos(math.pi * t / 10)) for t in range(10)])
    np.testing.assert_array_equal(crop_lower_bounds(Recover(iterations=3)), 0.08)


def test_jobs_cover_every_image_once_slot_by_slot():
    settings = dataclasses.replace(recipe(), ipc=3)
    everything = jobs(settings, 6)
    assert [job.index for job in everything] == list(range(6))
    seen = [pair for job in everything for pair in zip(job.classes().tolist(), job.slots().tolist(), strict=True)]
    assert sorted(seen) == [(c, k) for c in range(6) for k in range(3)]
    assert [job.num_classes for job in everything[:2]] == [4, 2]


def test_a_small_set_is_the_beginning_of_a_large_one():
    small, large = recipe(), dataclasses.replace(recipe(), ipc=5)
    for one, other in zip(jobs(small, 6), jobs(large, 6), strict=False):
        assert one == other
        first, second = (ByStatistics(settings, [teacher()], CPU)(one) for settings in (small, large))
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_what_a_job_made_outlives_the_next_job():
    recoverer, everything = ByStatistics(recipe(), [teacher()], CPU), jobs(recipe(), 6)
    first = recoverer(everything[0])
    images, losses = first.images.clone(), first.losses.clone()
    recoverer(everything[2])
    assert torch.equal(first.images, images) and torch.equal(first.losses, losses)


def test_a_job_asks_once_for_what_it_begins_with(monkeypatch):
    """Of a shape that is new too: initial images and local targets may take long."""
    settings, asked, targets = recipe(iterations=1, precision="fp32"), [], []
    own = RecoverStep._targets
    monkeypatch.setattr(RecoverStep, "_targets", lambda step, *given: targets.append(given) or own(step, *given))

    def initial_of(job):
        asked.append(job.index)
        return torch.full((job.num_images, 3, 12, 12), float(job.index))

    recoverer = ByStatistics(settings, [teacher()], CPU, initial_of)
    made = jobs(settings, 6)
    assert len({job.shape for job in made}) == 2 < len(made)
    for job in made:
        recoverer.begin(job)
        assert torch.equal(recoverer.step.images, torch.full((job.num_images, 3, 12, 12), float(job.index)))
    assert asked == [job.index for job in made] and len(targets) == len(made)


def test_images_depend_on_seed_slot_and_class():
    settings = recipe()
    images = {
        RecoverStep(dataclasses.replace(settings, seed=seed), job, [teacher()], CPU).images.numpy().tobytes()
        for seed in (0, 1)
        for job in jobs(settings, 6)
    }
    assert len(images) == 8
    shared = window_table(settings, jobs(settings, 6)[0])
    assert shared.shape == (6, 1, 7) and not torch.equal(shared, window_table(settings, jobs(settings, 6)[1]))


def test_pixels_round_and_stay_in_range():
    normalize = Normalization.of(DATASET, CPU)
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1)[None, :, :, None]
    assert torch.equal(normalize.pixels(normalize(pixels)), pixels)
    low, high = normalize.range()
    torch.testing.assert_close(low, -torch.tensor(DATASET.mean) / torch.tensor(DATASET.std))
    torch.testing.assert_close(high, (1 - torch.tensor(DATASET.mean)) / torch.tensor(DATASET.std))


@pytest.mark.parametrize("size", [32, 33, 64])
def test_jpeg_storage_is_what_pillow_writes_and_reads(size, tmp_path):
    """As the published codes do: levels truncated to bytes, image.save of a .jpg, and the file read again."""
    levels = 255 * torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(size))
    found = stored(levels, "jpeg")
    assert found.dtype == torch.uint8 and torch.equal(found, stored(levels, "jpeg"))
    for image, kept in zip(levels, found, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy().astype(np.uint8)).save(tmp_path / "image.jpg")
        with Image.open(tmp_path / "image.jpg") as written:
            assert written.layer[0][1:3] == (2, 2) and written.layer[1][1:3] == (1, 1)  # half the chroma, each way
            assert np.array_equal(np.asarray(written.convert("RGB")), kept.permute(1, 2, 0).numpy())
    assert torch.equal(stored(levels, "png"), levels.round().to(torch.uint8))


def test_jpeg_storage_truncates_and_png_rounds():
    """A grey image is its own JPEG: what remains is how levels become bytes."""
    levels = torch.full((1, 3, 16, 16), 99.75)
    assert stored(levels, "jpeg").unique().tolist() == [99] and stored(levels, "png").unique().tolist() == [100]


def test_a_job_keeps_the_jpegs_of_its_images():
    job = jobs(recipe(), 6)[0]
    step = RecoverStep(recipe(), job, [teacher()], CPU)
    for _ in range(6):
        step(ALONE)
    wanted = stored(Normalization.of(DATASET, CPU).levels(step.images), "jpeg")
    assert torch.equal(ByStatistics(recipe(storage="jpeg"), [teacher()], CPU)(job).images, wanted)
    unchanged = ByStatistics(recipe(), [teacher()], CPU)(job).images
    assert torch.equal(unchanged, Normalization.of(DATASET, CPU).pixels(step.images))


def test_divergence_is_reported():
    with pytest.raises(ValueError, match="diverged"):
        ByStatistics(recipe(match_weight=float("nan")), [teacher()], CPU)(jobs(recipe(), 6)[0])


def test_a_teacher_without_batch_norm_is_refused():
    plain = Teacher.of(nn.Sequential(nn.Flatten(), nn.Linear(432, 6)), "plain", range(6), range(6), DATASET)
    with pytest.raises(ValueError, match="no layer to match"):
        ByStatistics(recipe(), [plain], CPU)
