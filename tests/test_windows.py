"""Window tables: pure functions, torchvision's distribution."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fastcondense.recipe.shared import Views
from fastcondense.rng import Stream
from fastcondense.views.windows import FLIP, HEIGHT, LEFT, ROLL_X, ROLL_Y, TOP, WIDTH, _exp, windows
from fastcondense.vision import torchvision

STREAM = Stream(11, "test/windows")


def test_a_window_depends_on_its_own_sample_alone():
    table = windows(STREAM, Views(), np.arange(100), 4, 60, 80)
    assert table.dtype == np.int32 and table.shape == (100, 7)
    np.testing.assert_array_equal(table[[70, 3]], windows(STREAM, Views(), np.array([70, 3]), 4, 60, 80))
    sizes = np.full(100, 60), np.full(100, 80)
    np.testing.assert_array_equal(table, windows(STREAM, Views(), np.arange(100), np.full(100, 4), *sizes))
    assert (table != windows(STREAM, Views(), np.arange(100), 5, 60, 80)).any(1).mean() > 0.95


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(224, 224, (0.08, 1.0)), (100, 375, (0.5, 1.0)), (64, 64, (0.8, 0.9))]
)
def test_crops_follow_torchvisions_distribution(height, width, scale):
    count = 4000
    table = windows(STREAM, Views(crop_scale=scale), np.arange(count), 0, height, width)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    transform = torchvision.transforms.RandomResizedCrop
    theirs = np.array([transform.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)])
    for ours, other in (
        (table[:, TOP], theirs[:, 0]),
        (table[:, LEFT], theirs[:, 1]),
        (table[:, HEIGHT], theirs[:, 2]),
        (table[:, WIDTH], theirs[:, 3]),
        (table[:, HEIGHT] * table[:, WIDTH], theirs[:, 2] * theirs[:, 3]),
        (table[:, TOP] + table[:, HEIGHT], theirs[:, 0] + theirs[:, 2]),
    ):
        assert stats.ks_2samp(ours, other).pvalue > 1e-3


def test_expected_area_of_the_usual_crop():
    table = windows(STREAM, Views(), np.arange(20000), 0, 224, 224)
    share = (table[:, HEIGHT].astype(float) * table[:, WIDTH]).mean() / 224**2
    assert abs(share - 0.479) < 0.01  # the measured value in the specification


def test_windows_stay_inside_and_fall_back_to_the_centre():
    table = windows(STREAM, Views(), np.arange(500), 0, 50, 400)
    assert (table[:, [TOP, LEFT]] >= 0).all() and (table[:, [HEIGHT, WIDTH]] >= 1).all()
    assert (table[:, TOP] + table[:, HEIGHT] <= 50).all() and (table[:, LEFT] + table[:, WIDTH] <= 400).all()
    always_whole = windows(STREAM, Views(crop_scale=(1.0, 1.0)), np.arange(50), 0, 40, 400)
    height, width = 40, round(40 * 4 / 3)
    np.testing.assert_array_equal(always_whole[:, :4], np.tile([0, (400 - width) // 2, height, width], (50, 1)))


def test_scale_one_takes_the_whole_square():
    table = windows(STREAM, Views(crop_scale=(1.0, 1.0), flip=0.0), np.arange(9), 0, 32, 32)
    np.testing.assert_array_equal(table, [[0, 0, 32, 32, 0, 0, 0]] * 9)


def test_scale_low_replaces_the_lower_bound():
    low = np.linspace(0.08, 1.0, 300)
    table = windows(STREAM, Views(), np.arange(300), 0, 200, 200, scale_low=low)
    share = table[:, HEIGHT].astype(float) * table[:, WIDTH] / 200**2
    assert (share > low - 0.02).all()


def test_flip_roll_and_padding_are_uniform():
    table = windows(STREAM, Views(padding=4, roll=(-2, 3), flip=0.25), np.arange(8000), 0, 32, 32)
    assert stats.binomtest(int(table[:, FLIP].sum()), 8000, 0.25).pvalue > 1e-3
    for column, low, count in ((ROLL_Y, -2, 6), (ROLL_X, -2, 6), (TOP, -4, 9), (LEFT, -4, 9)):
        assert stats.chisquare(np.bincount(table[:, column] - low, minlength=count)).pvalue > 1e-3
    assert (table[:, [HEIGHT, WIDTH]] == 32).all()


def test_exponential_is_accurate():
    x = np.linspace(-4, 4, 1001)
    np.testing.assert_allclose(_exp(x), [math.exp(v) for v in x], rtol=2e-14)


@pytest.mark.parametrize("wrong", [{"crop_scale": (0.0, 1.0)}, {"crop_ratio": (2.0, 1.0)}, {"roll": (3, 1)}])
def test_senseless_views_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"^here\.{next(iter(wrong))} needs"):
        Views(**wrong).check("here", 32)
