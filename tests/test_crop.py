"""crop against torchvision's tensor path, and its gradient against the exact adjoint."""

import importlib

import numpy as np
import pytest
import torch
from kernel_checks import poisoned, relative_rms

from fastcondense.kernels.crop import crop
from fastcondense.recipe.shared import Views
from fastcondense.rng import Stream
from fastcondense.views.windows import windows
from fastcondense.vision import torchvision  # noqa: F401  (makes the next import work beside a CPU torch)

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


EXTENTS = [(32, 32, 32), (33, 20, 32), (64, 50, 9), (7, 13, 14), (1, 1, 5), (5, 40, 1)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planar", "channels_last"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "each"])
@pytest.mark.parametrize(("height", "width", "size"), EXTENTS)
def test_float32_equals_float64(height, width, size, shared, layout):
    images = torch.randn(4, 3, height, width, generator=torch.Generator().manual_seed(0)) + 2
    leaf = images.contiguous(memory_format=layout).requires_grad_()
    table = torch.from_numpy(windows(Stream(2, "crop"), Views(roll=(-3, 3)), np.arange(4), 0, height, width))
    table = table[:1] if shared else table
    gain, offset = torch.tensor([0.5, 2.0, -1.0]), torch.tensor([0.1, -3.0, 0.0])
    dout = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    with poisoned():
        views = crop(leaf, table, size, gain=gain, offset=offset)
        (gradient,) = torch.autograd.grad(views, leaf, dout)
    leaf64 = images.double().requires_grad_()
    wanted = crop(leaf64, table, size, gain=gain, offset=offset)
    assert relative_rms(views, wanted) <= 1e-6
    assert relative_rms(gradient, torch.autograd.grad(wanted, leaf64, dout.double())[0]) <= 1e-6
    assert gradient.stride() == leaf.stride() and views.is_contiguous(memory_format=torch.channels_last)


def test_threads_move_no_bit():
    images = torch.randn(3, 3, 33, 20, generator=torch.Generator().manual_seed(0)).requires_grad_()
    table = torch.from_numpy(windows(Stream(2, "crop"), Views(roll=(-3, 3)), np.arange(3), 0, 33, 20))
    threads, runs = torch.get_num_threads(), []
    try:
        for number in (1, 2, 1):
            torch.set_num_threads(number)
            views = crop(images, table, 17)
            runs.append((views, torch.autograd.grad(views.square().sum(), images)[0]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_in_and_out(dtype):
    images = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    table = torch.tensor([[1, 0, 7, 6, 1, 2, 0]], dtype=torch.int32)
    views = crop(images, table, 8, dtype=dtype)
    (gradient,) = torch.autograd.grad(views.float().sum(), images)
    assert views.dtype == gradient.dtype == dtype
    assert torch.equal(views, crop(images.detach().float(), table, 8).to(dtype))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planar", "channels_last"])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_bfloat16_views_are_float64s_rounded_once(source, layout):
    images = (
        (torch.rand(3, 3, 13, 9, generator=torch.Generator().manual_seed(0)) * 255).to(source).to(memory_format=layout)
    )
    table = torch.tensor([[1, 0, 7, 6, 1, 2, 0], [0, 0, 13, 9, 0, 0, 3], [-2, 3, 11, 11, 0, 0, 0]], dtype=torch.int32)
    leaf, exact = images, images.double().requires_grad_()
    if source != torch.uint8:
        leaf = images.requires_grad_()
    gain, offset = torch.tensor([0.5, 1.5, -1.0]), torch.tensor([3.0, 0.0, 1.0])
    views = crop(leaf, table, 11, gain=gain, offset=offset, dtype=torch.bfloat16)
    wanted = crop(exact, table, 11, gain=gain.double(), offset=offset.double())
    found = [(views, wanted)]
    if source != torch.uint8:
        upstream = torch.randn(views.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
        (ours,), (right,) = (
            torch.autograd.grad(out, of, upstream.to(out.dtype)) for out, of in ((views, leaf), (wanted, exact))
        )
        assert ours.dtype == source
        found.append((ours, right))
    for made, right in found:
        bound = 2**-8 * right.detach().abs() + 1e-5 * float(right.detach().abs().max())
        assert bool(((made.detach().double() - right.detach()).abs() <= bound).all())


def test_what_is_outside_the_window_does_not_matter():
    images, table = torch.rand(1, 3, 9, 9), torch.tensor([[2, 3, 5, 4, 0, 1, 2]])
    spoilt = torch.full_like(images, torch.nan)
    spoilt[:, :, 2:7, 3:7] = images[:, :, 2:7, 3:7]
    spoilt.requires_grad_()
    views = crop(spoilt, table, 9)
    assert torch.equal(views, crop(images, table, 9))
    (gradient,) = torch.autograd.grad(views.sum(), spoilt)
    inside = torch.zeros(9, 9, dtype=torch.bool)
    inside[2:7, 3:7] = True
    assert torch.equal(gradient[0, 0] != 0, inside)


def test_no_images():
    images = torch.zeros(0, 3, 9, 9).requires_grad_()
    views = crop(images, torch.zeros(0, 7, dtype=torch.int32), 5)
    assert views.shape == (0, 3, 5, 5) and torch.autograd.grad(views.sum(), images)[0].shape == images.shape


def test_strided_bytes():
    images = torch.randint(0, 256, (2, 3, 12, 10), dtype=torch.uint8)
    table = torch.tensor([[1, 2, 9, 6, 1, 0, 3]])
    wanted = crop(images, table, 8)
    assert torch.equal(crop(images.contiguous(memory_format=torch.channels_last), table, 8), wanted)
    assert torch.equal(crop(images.transpose(2, 3).contiguous().transpose(2, 3), table, 8), wanted)


def test_output_is_channels_last_float32():
    views = crop(torch.zeros(2, 3, 8, 8), torch.tensor([[0, 0, 8, 8, 0, 0, 0]]), 4)
    assert views.is_contiguous(memory_format=torch.channels_last) and views.dtype == torch.float32


@pytest.mark.parametrize("table", [torch.zeros(3, 7), torch.zeros(2, 6), torch.tensor([[-1, 0, 6, 6, 0, 0, 0]])])
def test_wrong_windows_are_refused(table):
    with pytest.raises(ValueError, match="windows"):
        crop(torch.zeros(2, 3, 8, 8), table.int(), 4)
