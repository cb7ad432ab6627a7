"""Differentiable augmentation against loops over pixels, scipy and torchvision; its table and its gradient."""

import importlib
import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from fastcondense.rng import Stream
from fastcondense.views.augment import (
    ANGLE,
    BRIGHTNESS,
    COLUMNS,
    CONTRAST,
    CUT_BOTTOM,
    CUT_LEFT,
    CUT_RIGHT,
    CUT_TOP,
    FLIP,
    OPERATIONS,
    SATURATION,
    SCALE_X,
    SCALE_Y,
    SHIFT_X,
    SHIFT_Y,
    augment,
    augmentations,
)
from fastcondense.vision import torchvision  # noqa: F401  (makes the next import work beside a CPU torch)

functional = importlib.import_module("torchvision.transforms.v2.functional")

STREAM = Stream(7, "test/diff_augment")
NEUTRAL = [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0]


def pictures(count, size, dtype=torch.float64):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(size), dtype=dtype)


def plain(image, row):
    """One image [3, S, S] and its row in numpy float64: each operation by the definition of it."""
    size = image.shape[-1]
    x = image + row[BRIGHTNESS]
    gray = x.mean(0, keepdims=True)
    x = gray + row[SATURATION] * (x - gray)
    x = x.mean() + row[CONTRAST] * (x - x.mean())
    if row[FLIP]:
        x = x[:, :, ::-1]
    shifted = np.zeros_like(x)
    for r in range(size):
        for c in range(size):
            source_r, source_c = r - int(row[SHIFT_Y]), c - int(row[SHIFT_X])
            if 0 <= source_r < size and 0 <= source_c < size:
                shifted[:, r, c] = x[:, source_r, source_c]
    x = shifted
    if row[SCALE_Y] != 1 or row[SCALE_X] != 1 or row[ANGLE]:
        cos, sin = math.cos(row[ANGLE]), math.sin(row[ANGLE])
        matrix = np.array([[row[SCALE_Y] * cos, sin], [-sin, row[SCALE_X] * cos]])  # of (row, column)
        centre = np.full(2, (size - 1) / 2)
        warp = {"offset": centre - matrix @ centre, "order": 1, "mode": "grid-constant"}
        x = np.stack([ndimage.affine_transform(channel, matrix, **warp) for channel in x])
    x = x.copy()
    x[:, int(row[CUT_TOP]) : int(row[CUT_BOTTOM]), int(row[CUT_LEFT]) : int(row[CUT_RIGHT])] = 0
    return x


@pytest.mark.parametrize("operations", [*((name,) for name in OPERATIONS), OPERATIONS], ids="-".join)
@pytest.mark.parametrize("size", [8, 17])
def test_equals_the_definition(size, operations):
    table = augmentations(STREAM, operations, np.arange(12), 3, size)
    assert (table[:, :] != torch.tensor(NEUTRAL)).any(1).sum() > 3
    images = pictures(12, size)
    rows = table.double().numpy()
    expected = np.stack([plain(image, row) for image, row in zip(images.numpy(), rows, strict=True)])
    # Sines of the float32 angles are rounded to float32 too.
    np.testing.assert_allclose(augment(images, table, operations), expected, rtol=0, atol=2e-6)
    single = augment(images.float(), table, operations)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, expected, rtol=0, atol=1e-5)


def test_rotation_flip_and_saturation_equal_torchvision():
    images = pictures(5, 13)
    degrees = [-15.0, -3.0, 0.0, 7.5, 14.0]
    table = torch.tensor([NEUTRAL] * 5).float()
    table[:, ANGLE] = torch.tensor(degrees).deg2rad()
    ours = augment(images, table, ("rotate",))
    bilinear = functional.InterpolationMode.BILINEAR
    for image, mine, angle in zip(images, ours, degrees, strict=True):
        # torchvision turns counter-clockwise, and clips nothing but the grid's own zeros
        torch.testing.assert_close(mine, functional.rotate(image, angle, bilinear), rtol=0, atol=1e-5)
    table = torch.tensor([NEUTRAL] * 5).float()
    table[:, FLIP] = 1
    assert torch.equal(augment(images, table, ("flip",)), functional.horizontal_flip(images))
    table[:, SATURATION] = 0
    gray = augment(images, table, ("saturation",))
    torch.testing.assert_close(gray, images.mean(1, keepdim=True).expand(-1, 3, -1, -1))


@pytest.mark.parametrize("size", [9, 16])
def test_one_row_is_done_to_all(size):
    images = pictures(4, size)
    row = augmentations(STREAM, OPERATIONS, 5, 2, size)
    assert row.shape == (1, COLUMNS)
    together = augment(images, row, OPERATIONS)
    torch.testing.assert_close(together, augment(images, row.expand(4, -1), OPERATIONS), rtol=0, atol=0)
    torch.testing.assert_close(together[2:3], augment(images[2:3], row, OPERATIONS), rtol=0, atol=1e-12)


def test_the_host_reads_nothing():
    """Tensors without values stand for a GPU's; flip and crop are a kernel's, whose own tests see to that."""
    others = tuple(name for name in OPERATIONS if name not in ("flip", "crop"))
    table = augmentations(STREAM, others, np.arange(4), 0, 9)
    assert augment(pictures(4, 9).to("meta"), table.to("meta"), others).shape == (4, 3, 9, 9)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients(operation):
    table = augmentations(STREAM, (operation,), np.arange(3), 0, 5)
    images = pictures(3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, table, (operation,)), (images,))


def test_the_table_holds_the_published_ranges():
    size, count = 32, 20000
    table = augmentations(STREAM, OPERATIONS, np.arange(count), 0, size).double().numpy()
    assert abs(table[:, FLIP].mean() - 0.5) < 0.02
    for column, low, high in ((BRIGHTNESS, -0.5, 0.5), (SATURATION, 0, 2), (CONTRAST, 0.5, 1.5)):
        assert stats.kstest(table[:, column], stats.uniform(low, high - low).cdf).pvalue > 1e-3
    is_scaled, is_turned = table[:, SCALE_Y] != 1, table[:, ANGLE] != 0
    is_shifted = (table[:, SHIFT_Y] != 0) | (table[:, SHIFT_X] != 0)
    assert not ((is_scaled & is_turned) | (is_scaled & is_shifted) | (is_turned & is_shifted)).any()
    np.testing.assert_allclose([is_scaled.mean(), is_turned.mean()], 1 / 3, atol=0.02)
    for column in (SCALE_Y, SCALE_X):
        scales = stats.uniform(1 / 1.2, 1.2 - 1 / 1.2)
        assert stats.kstest(table[is_scaled, column], scales.cdf).pvalue > 1e-3
    angles = stats.uniform(-math.radians(15), 2 * math.radians(15))
    assert stats.kstest(table[is_turned, ANGLE], angles.cdf).pvalue > 1e-3
    shifts = augmentations(STREAM, ("crop",), np.arange(count), 0, size)[:, SHIFT_Y : SHIFT_X + 1].flatten()
    counts = np.unique(shifts.numpy(), return_counts=True)
    assert counts[0].tolist() == list(range(-4, 5)) and stats.chisquare(counts[1]).pvalue > 1e-3


@pytest.mark.parametrize(("size", "side", "places"), [(8, 4, 9), (17, 9, 17), (5, 3, 5), (1, 1, 1)])
def test_squares_are_half_the_side_and_cut_at_the_edges(size, side, places):
    table = augmentations(STREAM, ("cutout",), np.arange(4000), 0, size)
    for begin, end in ((CUT_TOP, CUT_BOTTOM), (CUT_LEFT, CUT_RIGHT)):
        starts = range(-(side // 2), places - side // 2)
        spans = [(max(start, 0), min(start + side, size)) for start in starts]
        found = {(int(a), int(b)) for a, b in table[:, [begin, end]].tolist()}
        assert found == set(spans) and all(a < b for a, b in found)


def test_a_row_depends_on_its_own_counters_alone():
    ids = np.arange(50)
    table = augmentations(STREAM, OPERATIONS, ids, 4, 16)
    assert torch.equal(table[[31, 2]], augmentations(STREAM, OPERATIONS, np.array([31, 2]), 4, 16))
    iterations = augmentations(STREAM, OPERATIONS, np.array([3]), np.arange(6)[:, None], 16)
    assert iterations.shape == (6, 1, COLUMNS)
    assert torch.equal(iterations[4], table[3:4]) and not torch.equal(iterations[5], table[3:4])
    # Leaving an operation out moves no other.
    fewer = augmentations(STREAM, ("flip", "contrast", "cutout"), ids, 4, 16)
    kept = [FLIP, CONTRAST, CUT_TOP, CUT_BOTTOM, CUT_LEFT, CUT_RIGHT]
    assert torch.equal(fewer[:, kept], table[:, kept])


def test_a_batch_can_share_the_kind_of_geometric_operation():
    ids, batches = np.arange(60), np.arange(60) // 10
    table = augmentations(STREAM, OPERATIONS, ids, 1, 64, geometric_ids=batches)
    kinds = torch.stack(
        ((table[:, [SHIFT_Y, SHIFT_X]] != 0).any(1), table[:, SCALE_Y] != 1, table[:, ANGLE] != 0), 1
    ).view(6, 10, 3)
    assert bool((kinds.any(1).sum(1) == 1).all()) and len(kinds.any(1).unique(dim=0)) > 1
    assert len(table[:10].unique(dim=0)) == 10  # the amounts remain each sample's own


def test_unknown_operations_are_refused():
    with pytest.raises(ValueError, match="got 'noise'"):
        augmentations(STREAM, ("flip", "noise"), 0, 0, 8)
