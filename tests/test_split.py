"""Jobs shared by several workers: statistics, gradients and images are those of one."""

import dataclasses

import pytest
import torch
import workers
from small import frozen_network

from fastcondense.data.jobs import Job
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Recover
from fastcondense.recipe.settings import Dataset
from fastcondense.recover.recover import Recoverer
from fastcondense.recover.split import Part
from fastcondense.teachers.teacher import Teacher

CPU = torch.device("cpu")
STATISTICS = ("bn", "conv", "patch")
CHANGES = {
    "plain": {},
    "many": {"per_image_windows": True, "statistics_ema": 0.5, "flatness_weight": 0.3, "distance": "squared"},
    "category": {"targets": ("category",), "stages": (8, 12), "statistics": ("bn",)},
}


def settings(change, split=True):
    recover = Recover(
        iterations=4, statistics=STATISTICS, patch_size=4, match_weight=0.5, lr=0.05, split=split, crop_scale=(0.5, 1.0)
    )
    dataset = Dataset(name="digits", image_size=12, resize=12)
    return Recipe(ipc=2, dataset=dataset, recover=dataclasses.replace(recover, **CHANGES[change])).check()


def teacher(recipe):
    net = frozen_network("zoo/convnet3_w32", 7)
    made = Teacher.of(net, "convnet", tuple("abcdefg"), range(7), recipe.dataset, recipe.recover.statistics, 4)
    images = torch.randn(14, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    vectors = dict(zip([layer.name for layer in made.layers], made.batch_targets(images), strict=True))
    return dataclasses.replace(
        made, targets=vectors, class_targets={n: tuple(torch.stack([v] * 7) for v in vs) for n, vs in vectors.items()}
    )


JOB = Job(3, 1, 1, 0, 7)  # an odd number of images


def recover(recipe):
    recoverer = Recoverer(recipe, [teacher(recipe)], CPU)
    made = recoverer(JOB)
    (step,) = recoverer.steps.values()
    return step.part.gathered(step.images), made


def work(rank, folder):
    for change in CHANGES:
        images, made = recover(settings(change))
        torch.save([images, made.images, made.losses], folder / f"{change}-{rank}.pt")
    torch.manual_seed(rank)
    part = Part(*((0, 3, 7), (3, 5, 7), (5, 7, 7))[rank])
    whole = torch.randn(7, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mine = whole[part.rows].clone().requires_grad_()
    moments = [(mine.mean((0, 2)), mine.var((0, 2), correction=0))]
    ((mean, var),) = part.pooled(moments)
    (gradient,) = torch.autograd.grad((mean**3).sum() + (var**2).sum() + (mean * var).sum(), mine)
    torch.save([mean, var, gradient], folder / f"pool-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("split")
    workers.start(work, 3, made)
    return made


def test_pooled_moments_and_their_gradient_are_those_of_all_images_in_float64(folder):
    whole = torch.randn(7, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mean, var = whole.mean((0, 2)), whole.var((0, 2), correction=0)
    (wanted,) = torch.autograd.grad((mean**3).sum() + (var**2).sum() + (mean * var).sum(), whole)
    found = [torch.load(folder / f"pool-{rank}.pt") for rank in range(3)]
    for values in found:
        torch.testing.assert_close(values[0], mean.detach(), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(values[1], var.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(torch.cat([values[2] for values in found]), wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("change", CHANGES)
def test_three_workers_make_the_images_and_losses_of_one_to_rounding(folder, change):
    images, alone = recover(settings(change, split=False))
    for rank in range(3):
        mine, pixels, losses = torch.load(folder / f"{change}-{rank}.pt")
        assert float((mine - images).norm() / images.norm()) < 1e-4
        assert int((pixels.int() - alone.images.int()).abs().max()) <= 1
        torch.testing.assert_close(losses, alone.losses, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_split_is_refused():
    good = settings("plain")
    for change in ({"tv_weight": 1.0}, {"densification_weight": 1.0}, {"objective": "gradients"}):
        with pytest.raises(ValueError, match=r"recover.split needs recover.objective statistics"):
            dataclasses.replace(good, recover=dataclasses.replace(good.recover, **change)).check()
    assert good.sha256() == settings("plain", split=False).sha256()
