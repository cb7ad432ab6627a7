"""crop's Triton kernels against F.interpolate(antialias=True) in float64, mirrored and rolled."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, TOLERANCE, poisoned, relative_rms
from torch import Tensor
from torch.nn import functional as F

from fastcondense.kernels.crop import crop
from fastcondense.kernels.crop.definition import axis_weights
from fastcondense.kernels.crop.gpu import Crop

# (height, width) of the source, size of the crop, windows: top, left, height, width, flip, roll_y, roll_x
CASES = {
    "smaller": ((17, 19), 13, [(0, 0, 17, 19, 0, 0, 0), (3, 5, 6, 7, 1, 2, -3), (9, 12, 8, 7, 0, 20, 5)]),
    "same": ((13, 13), 13, [(0, 0, 13, 13, 1, 0, 0), (2, 1, 11, 12, 0, -1, 4), (0, 6, 5, 7, 1, 12, 12)]),
    "larger": ((19, 26), 7, [(0, 0, 19, 26, 0, 1, 0), (5, 4, 8, 21, 1, 0, 6), (1, 2, 7, 6, 0, 0, 0)]),
    "point": ((4, 5), 5, [(2, 3, 1, 1, 1, 0, 4)]),
    "one": ((5, 7), 1, [(0, 0, 5, 7, 1, 0, 0)]),
    "shared": ((11, 11), 16, [(1, 2, 8, 9, 1, 3, 15)]),
    "overhanging": ((9, 9), 9, [(-2, 3, 9, 9, 0, 0, 0), (4, -4, 9, 9, 1, 0, 0), (-4, 4, 9, 9, 0, 2, 1)]),
}


def reference(images: Tensor, rows: list[tuple[int, ...]], size: int) -> Tensor:
    """Crops by interpolation and indexing; images: float64 on the CPU."""
    outputs = []
    rows = rows * len(images) if len(rows) == 1 else rows
    for image, (top, left, height, width, flip, roll_y, roll_x) in zip(images, rows, strict=True):
        pad = 16
        padded = F.pad(image[None], (pad, pad, pad, pad))
        view = padded[:, :, top + pad : top + pad + height, left + pad : left + pad + width]
        if (height, width) != (size, size):
            view = F.interpolate(view, [size, size], mode="bilinear", align_corners=False, antialias=True)
        view = view.flip(-1) if flip else view
        outputs.append(torch.roll(view, (roll_y, roll_x), (2, 3)))
    return torch.cat(outputs)


def source(count: int, channels: int, extent: tuple[int, int]) -> Tensor:
    return torch.randn(count, channels, *extent, generator=torch.Generator().manual_seed(0)) + 2


def table(rows: list[tuple[int, ...]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planar", "channels_last"])
def test_forward_and_adjoint(name: str, layout: torch.memory_format) -> None:
    extent, size, rows = CASES[name]
    images = source(2 if name == "shared" else len(rows), 3, extent)
    gain, offset = torch.tensor([0.5, 2.0, -1.0]), torch.tensor([0.1, -3.0, 0.0])
    leaf = images.to(DEVICE, memory_format=layout).requires_grad_()
    dout = torch.randn(len(images), 3, size, size, generator=torch.Generator().manual_seed(1))
    with poisoned():
        output = Crop.apply(leaf, table(rows), size, gain.to(DEVICE), offset.to(DEVICE), torch.float32)
        (gradient,) = torch.autograd.grad(output, leaf, dout.to(DEVICE))
    leaf64 = images.double().requires_grad_()
    wanted = reference(leaf64, rows, size) * gain.double()[:, None, None] + offset.double()[:, None, None]
    (expected,) = torch.autograd.grad(wanted, leaf64, dout.double())
    assert relative_rms(output, wanted) <= 1e-6
    assert relative_rms(gradient, expected) <= 1e-6
    assert output.is_contiguous(memory_format=torch.channels_last) and gradient.is_contiguous(memory_format=layout)
    closed = crop(images, table(rows).cpu(), size, gain=gain, offset=offset)
    assert relative_rms(output, closed) <= 1e-6
    inner = (output - offset.to(DEVICE)[:, None, None]).double() * dout.to(DEVICE).double()
    assert inner.sum().item() == pytest.approx((leaf * gradient).double().sum().item(), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_any_number_of_channels(channels: int) -> None:
    extent, size, rows = CASES["point"]
    images = source(len(rows), channels, extent)
    leaf, leaf64 = images.to(DEVICE).requires_grad_(), images.double().requires_grad_()
    wanted = reference(leaf64, rows, size)
    with poisoned():
        output = Crop.apply(leaf, table(rows), size, None, None, torch.float32)
        (gradient,) = torch.autograd.grad(output, leaf, torch.ones_like(output))
    (expected,) = torch.autograd.grad(wanted.sum(), leaf64)
    assert relative_rms(output, wanted) <= 1e-6 and relative_rms(gradient, expected) <= 1e-6


def test_bytes_in_and_bfloat16_out() -> None:
    extent, size, rows = CASES["larger"]
    images = torch.randint(0, 256, (len(rows), *extent, 3), generator=torch.Generator().manual_seed(0)).byte()
    images = images.permute(0, 3, 1, 2)  # as the loaders hand them over
    gain, offset = torch.full((3,), 1 / 64), torch.full((3,), -2.0)
    wanted = reference(images.double(), rows, size) / 64 - 2
    for dtype in (torch.float32, torch.bfloat16):
        output = Crop.apply(images.to(DEVICE), table(rows), size, gain.to(DEVICE), offset.to(DEVICE), dtype)
        assert output.dtype == dtype and relative_rms(output, wanted) <= TOLERANCE[dtype]


def test_gradient_of_a_bfloat16_crop() -> None:
    extent, size, rows = CASES["shared"]
    images = source(2, 3, extent)
    leaf, leaf64 = images.to(DEVICE).requires_grad_(), images.double().requires_grad_()
    dout = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)).bfloat16()
    with poisoned():
        output = Crop.apply(leaf, table(rows), size, None, None, torch.bfloat16)
        (gradient,) = torch.autograd.grad(output, leaf, dout.to(DEVICE))
    (expected,) = torch.autograd.grad(reference(leaf64, rows, size), leaf64, dout.double())
    assert gradient.dtype == torch.float32 and relative_rms(gradient, expected) <= 1e-6


def test_identity_and_overhang_copy_values_exactly() -> None:
    images = source(1, 3, (13, 13)).to(DEVICE)
    whole = Crop.apply(images, table([(0, 0, 13, 13, 0, 0, 0)]), 13, None, None, torch.float32)
    assert torch.equal(whole, images)
    moved = Crop.apply(images, table([(-3, 2, 13, 13, 0, 0, 0)]), 13, None, None, torch.float32)
    assert torch.equal(moved[:, :, 3:, :11], images[:, :, :10, 2:])
    assert not moved[:, :, :3].any() and not moved[:, :, :, 11:].any()


def test_two_runs_agree_bit_for_bit() -> None:
    extent, size, rows = CASES["shared"]
    leaf = source(2, 3, extent).to(DEVICE).requires_grad_()
    runs = []
    for _ in range(2):
        output = Crop.apply(leaf, table(rows), size, None, None, torch.float32)
        runs.append((output, torch.autograd.grad(output.square().sum(), leaf)[0]))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_shared_window_equals_the_same_window_for_each() -> None:
    extent, size, rows = CASES["shared"]
    images = source(3, 3, extent).to(DEVICE)
    shared = Crop.apply(images, table(rows), size, None, None, torch.float32)
    assert torch.equal(shared, Crop.apply(images, table(rows * 3), size, None, None, torch.float32))


@pytest.mark.parametrize("size", [1, 5, 12])
def test_weights_of_many_lengths(size: int) -> None:
    """One image row a length: the kernel's closed-form totals against the weight matrix."""
    lengths = torch.tensor([1, 2, 5, 6, 11, 12, 13, 24, 33])
    count = len(lengths)
    images = source(count, 1, (1, 40)).to(DEVICE)
    zero, one = torch.zeros_like(lengths), torch.ones_like(lengths)
    windows = torch.stack((zero, lengths % 7, one, lengths, zero, zero, zero), 1).int().to(DEVICE)
    output = Crop.apply(images, windows, size, None, None, torch.float32)
    weights = axis_weights(lengths % 7, lengths, 40, size, zero, zero)
    wanted = torch.einsum("nsw,nw->ns", weights, images[:, 0, 0].double().cpu())
    assert relative_rms(output[:, 0, 0], wanted) <= 1e-6


def test_refuses_wrong_arguments() -> None:
    images = source(2, 3, (9, 9))
    with pytest.raises(ValueError, match="windows of shape"):
        crop(images, torch.zeros(3, 7, dtype=torch.int32), 9)
    with pytest.raises(ValueError, match="gain of shape"):
        crop(images, torch.zeros(2, 7, dtype=torch.int32), 9, gain=torch.ones(1))
    with pytest.raises(ValueError, match="inside the image"):
        crop(images, torch.tensor([(-1, 0, 5, 5, 0, 0, 0)]), 9)
