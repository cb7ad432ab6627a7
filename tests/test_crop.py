"""crop against torchvision's tensor path, and its gradient against the exact adjoint."""

import importlib

import numpy as np
import pytest
import torch

from fastcondense.kernels.crop import crop
from fastcondense.rng import Stream
from fastcondense.vision import torchvision  # noqa: F401  (makes the next import work beside a CPU torch)
from fastcondense.windows import Views, windows

resized_crop = importlib.import_module("torchvision.transforms.v2.functional").resized_crop


def reference(image, row, size):
    top, left, height, width, flip, roll_y, roll_x = map(int, row)
    view = resized_crop(image, top, left, height, width, [size, size], antialias=True)
    view = view.flip(-1) if flip else view
    return torch.roll(view, (roll_y, roll_x), (1, 2))


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (33, 20, 32), (64, 50, 9), (7, 13, 14), (1, 1, 5)])
def test_equals_torchvision(height, width, size):
    torch.manual_seed(0)
    images = torch.rand(6, 3, height, width)
    table = torch.from_numpy(windows(Stream(0, "crop"), Views(roll=(-3, 3)), np.arange(6), 0, height, width))
    expected = torch.stack([reference(image, row, size) for image, row in zip(images, table, strict=True)])
    torch.testing.assert_close(crop(images, table, size), expected, rtol=0, atol=2e-5)  # torchvision's weights are fp32
    shared = torch.stack([reference(image, table[0], size) for image in images])
    torch.testing.assert_close(crop(images, table[:1], size), shared, rtol=0, atol=2e-5)


def test_uint8_is_normalised_after_the_crop():
    images = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8)
    table = torch.from_numpy(windows(Stream(0, "crop"), Views(), np.arange(4), 0, 20, 20))
    gain, offset = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, -1.0, 0.5])
    expected = crop(images.float(), table, 16) * gain[:, None, None] + offset[:, None, None]
    torch.testing.assert_close(crop(images, table, 16, gain=gain, offset=offset), expected)


def test_a_window_over_the_edge_sees_zeros():
    images = torch.rand(1, 3, 8, 8)
    table = torch.tensor([[-2, 3, 8, 8, 0, 0, 0]], dtype=torch.int32)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    torch.testing.assert_close(crop(images, table, 8), padded[:, :, 2:10, 7:15], rtol=0, atol=0)


def test_backward_is_the_adjoint():
    torch.manual_seed(0)
    table = torch.from_numpy(windows(Stream(1, "crop"), Views(roll=(0, 4)), np.arange(3), 0, 12, 10))
    images = torch.randn(3, 2, 12, 10, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 2, 7, 7, dtype=torch.float64)
    views = crop(images, table, 7)
    (gradient,) = torch.autograd.grad(views, images, y)
    torch.testing.assert_close((views * y).sum(), (images * gradient).sum())
    assert torch.autograd.gradcheck(lambda x: crop(x, table, 7), images)


def test_output_is_channels_last_float32():
    views = crop(torch.zeros(2, 3, 8, 8), torch.tensor([[0, 0, 8, 8, 0, 0, 0]]), 4)
    assert views.is_contiguous(memory_format=torch.channels_last) and views.dtype == torch.float32


@pytest.mark.parametrize("table", [torch.zeros(3, 7), torch.zeros(2, 6), torch.tensor([[-1, 0, 6, 6, 0, 0, 0]])])
def test_wrong_windows_are_refused(table):
    with pytest.raises(ValueError, match="windows"):
        crop(torch.zeros(2, 3, 8, 8), table.int(), 4)
