"""Colours of views against torchvision's transforms, image by image, and their draws against the settings."""

from importlib import import_module

import numpy as np
import pytest
import torch

from fastcondense.recipe.settings import SelfSupervision
from fastcondense.rng import Stream
from fastcondense.squeeze import recolor as ours
from fastcondense.squeeze.recolor import recolor
from fastcondense.vision import torchvision  # noqa: F401 - makes it importable beside a CPU build of torch

theirs = import_module("torchvision.transforms.v2.functional")


def images(count, height=9, width=7):
    x = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count))
    x[0, :, :3] = 0.4  # grey pixels
    x[1, :, 0, :3] = torch.tensor([[0.0, 1, 0.5], [0, 1, 0.5], [0, 0, 0.2]])  # black, and channels that are equal
    return x


def check(made, wanted, tolerance=2e-6):
    torch.testing.assert_close(made, torch.stack(wanted), rtol=0, atol=tolerance)


FACTORS = [0.0, 0.3, 1.0, 1.4, 2.5]


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_blends_are_torchvisions(name):
    x, factors = images(5), torch.tensor(FACTORS)
    adjust = getattr(theirs, f"adjust_{name}")
    check(
        getattr(ours, name)(x, factors[:, None, None, None]), [adjust(*pair) for pair in zip(x, FACTORS, strict=True)]
    )


def test_hue_is_torchvisions():
    x, turns = images(6), [-0.5, -0.2, 0.0, 0.05, 0.31, 0.5]
    made = ours.hue(x, torch.tensor(turns)[:, None, None, None])
    check(made, [theirs.adjust_hue(*pair) for pair in zip(x, turns, strict=True)], 5e-6)
    assert (made[0] - x[0]).abs().max() > 0.1


def test_blur_is_torchvisions_with_a_sigma_an_image():
    x, sigmas = images(4, 15, 17), [0.1, 0.5, 1.1, 2.0]
    made = ours.blur(x, torch.tensor(sigmas)[:, None], 2.0)
    check(made, [theirs.gaussian_blur(image, [13, 13], [s, s]) for image, s in zip(x, sigmas, strict=True)])


def test_blur_of_an_image_that_is_smaller_than_the_kernel():
    x = images(2, 4, 3)
    made = ours.blur(x, torch.tensor([[1.0], [2.0]]), 2.0)
    check(made, [theirs.gaussian_blur(image, [5, 5], [s, s]) for image, s in zip(x, (1.0, 2.0), strict=True)])


def test_grey_is_torchvisions():
    x = images(3)
    check(ours.grey(x), [theirs.rgb_to_grayscale(image) for image in x])


# --- draws -----------------------------------------------------------------------------------------------------------

STREAM = Stream(3, "test")
ALL = SelfSupervision()


@pytest.mark.parametrize("view", [0, 3])
def test_a_samples_colours_do_not_depend_on_its_batch(view):
    x, ids = images(40), np.arange(100, 140)
    whole = recolor(x, ids, 5, view, ALL, STREAM)
    some = [7, 3, 39]
    torch.testing.assert_close(recolor(x[some], ids[some], 5, view, ALL, STREAM), whole[some], rtol=0, atol=1e-6)
    for other in (recolor(x, ids, 6, view, ALL, STREAM), recolor(x, ids, 5, view + 1, ALL, STREAM)):
        changed = ((other - whole).abs().amax((1, 2, 3)) > 1e-3).float().mean()
        assert changed > 0.8
    assert whole.min() > -1e-6 and whole.max() < 1 + 1e-6


def share_of_changed(view, **settings):
    off = {"jitter": (0.0,) * 4, "grey": 0.0, "blur": 0.0}
    x = images(2000, 4, 4)
    made = recolor(x, np.arange(2000), 0, view, SelfSupervision(**(off | settings)), STREAM)
    return float(((made - x).abs().amax((1, 2, 3)) > 1e-6).float().mean())


@pytest.mark.parametrize(
    ("view", "settings", "wanted"),
    [
        (0, {}, 0.0),
        (0, {"grey": 0.2}, 0.2),
        (0, {"jitter": (0.4, 0, 0, 0)}, 0.8),
        (1, {"jitter": (0, 0, 0, 0.1)}, 0.8),
        (0, {"blur": 0.9}, 0.9 * 0.95),  # a deviation below a fifth of a pixel changes nothing
        (1, {"blur": 0.2}, 0.2 * 0.95),
    ],
)
def test_probabilities(view, settings, wanted):
    assert share_of_changed(view, **settings) == pytest.approx(wanted, abs=0.03)


def test_amounts_are_uniform_over_the_range(monkeypatch):
    monkeypatch.setattr(ours, "_JITTERED", 1.0)
    x = torch.full((4000, 3, 1, 1), 0.5)
    only = SelfSupervision(jitter=(0.4, 0, 0, 0), grey=0.0, blur=0.0)
    factors = recolor(x, np.arange(4000), 0, 0, only, STREAM)[:, 0, 0, 0].double() / 0.5
    assert 0.6 <= factors.min() < 0.61 and 1.39 < factors.max() <= 1.4 + 1e-6
    assert float(factors.mean()) == pytest.approx(1.0, abs=0.012)
    assert float(factors.var()) == pytest.approx(0.8**2 / 12, rel=0.06)


def test_the_order_of_the_jitter_differs_from_epoch_to_epoch(monkeypatch):
    monkeypatch.setattr(ours, "_JITTERED", 1.0)
    x = images(200)
    strong = SelfSupervision(jitter=(0.8, 0.8, 0.8, 0.4), grey=0.0, blur=0.0)
    orders = {tuple(np.argsort(np.concatenate(STREAM.words(0, epoch, 3)), kind="stable")) for epoch in range(300)}
    assert len(orders) == 24
    for epoch in (0, 1):
        order = np.argsort(np.concatenate(STREAM.words(0, epoch, 3)), kind="stable")
        draws = STREAM.uniform(np.arange(200), epoch, 0)
        by_hand = []
        for k, image in enumerate(x):
            for step in order:
                name = ("brightness", "contrast", "saturation", "hue")[step]
                change = strong.jitter[step] * (2 * draws[step][k] - 1)
                image = getattr(theirs, f"adjust_{name}")(image, change if step == 3 else max(0.0, 1 + change))
            by_hand.append(image)
        check(recolor(x, np.arange(200), epoch, 0, strong, STREAM), by_hand, 1e-5)
