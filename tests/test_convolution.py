"""Frozen convolutions against plain ones, where the weights outweigh the maps and where they do not."""

import copy

import pytest
import torch
from torch import nn

from fastcondense.networks.grouped_convolution import Grouped
from fastcondense.teachers.convolution import adopt
from fastcondense.teachers.fuse import fuse
from fastcondense.vision import timm

CASES = {
    "weights outweigh maps": ({"in_channels": 24, "out_channels": 40, "kernel_size": 3, "padding": 1}, 3),
    "stride, no bias": ({"in_channels": 24, "out_channels": 40, "kernel_size": 3, "stride": 2, "bias": False}, 5),
    "groups, dilation": ({"in_channels": 24, "out_channels": 48, "kernel_size": 5, "groups": 4, "dilation": 2}, 10),
    "reflected border": (
        {"in_channels": 24, "out_channels": 40, "kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        4,
    ),
    "maps outweigh weights": ({"in_channels": 3, "out_channels": 8, "kernel_size": 7, "padding": 3}, 20),
}


def pair(settings):
    torch.manual_seed(0)
    plain = nn.Conv2d(**settings).requires_grad_(False)
    frozen = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    adopt(frozen)
    return plain, frozen


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_a_plain_convolution(name, dtype):
    settings, size = CASES[name]
    plain, frozen = pair(settings)
    x = torch.randn(2, settings["in_channels"], size, size, dtype=torch.float64)
    truth = x.clone().requires_grad_()
    expected = plain.double()(truth)
    ours = x.to(dtype, memory_format=torch.channels_last).requires_grad_()
    y = frozen.to(dtype)(ours)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert (frozen.planar_weight is not None) == (name != "maps outweigh weights")
    upstream = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(y, ours, upstream.to(dtype))
    (wanted,) = torch.autograd.grad(expected, truth, upstream)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    for made, right in ((y, expected), (gradient, wanted)):
        assert float((made.detach().double() - right.detach()).norm() / right.detach().norm()) < tolerance


def test_the_copy_of_the_weights_follows_their_type():
    plain, frozen = pair(CASES["weights outweigh maps"][0])
    x = torch.randn(1, 24, 3, 3)
    frozen(x)
    torch.testing.assert_close(frozen.double()(x.double()), plain.double()(x.double()))
    frozen.weight.data, frozen.bias.data = frozen.weight.data.bfloat16(), frozen.bias.data.bfloat16()
    assert frozen(x.bfloat16()).dtype == torch.bfloat16
    assert set(frozen.state_dict()) == {"weight", "bias"}


PACKED = {  # channels in and out, kernel, stride, padding, size, and how its gradient is made
    "block": (24, 40, 3, 1, 1, (9, 13), "mirrored"),
    "no padding": (24, 40, 3, 1, 0, (9, 13), "mirrored"),
    "weights outweigh maps": (64, 64, 3, 1, 1, (2, 2), "mirrored"),
    "stride": (24, 40, 3, 2, 1, (9, 14), "transposed"),
    "shortcut": (24, 40, 1, 2, 0, (8, 13), "transposed"),
    "product": (97, 131, 3, 1, 1, (1, 1), "product"),
    "product with a stride": (150, 160, 3, 2, 1, (3, 1), "transposed"),
    "stem": (3, 16, 7, 2, 3, (32, 18), "stem"),
    "odd stem": (3, 16, 7, 2, 3, (31, 18), "transposed"),
}


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 here")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", PACKED)
def test_packed_bfloat16_equals_float64(name, bias):
    inputs, outputs, side, stride, padding, size, kind = PACKED[name]
    plain, frozen = pair(
        {
            "in_channels": inputs,
            "out_channels": outputs,
            "kernel_size": side,
            "stride": stride,
            "padding": padding,
            "bias": bias,
        }
    )
    plain, frozen = plain.bfloat16().double(), frozen.bfloat16()
    for _ in range(2):  # packed, then found packed
        x = torch.randn(3, inputs, *size).bfloat16()
        truth, ours = x.double().requires_grad_(), x.to(memory_format=torch.channels_last).requires_grad_()
        expected, y = plain(truth), frozen(ours)
        assert y.is_contiguous(memory_format=torch.channels_last) and y.dtype == torch.bfloat16
        upstream = torch.randn_like(expected).bfloat16()
        (gradient,) = torch.autograd.grad(y, ours, upstream)
        (wanted,) = torch.autograd.grad(expected, truth, upstream.double())
        for made, right in ((y, expected), (gradient, wanted)):
            bound = 2**-8 * right.detach().abs() + 1e-5 * float(right.detach().abs().max())
            assert bool(((made.detach().double() - right.detach()).abs() <= bound).all())
    (packed,) = frozen.packed.values()
    assert packed._gradient_weight[0] == kind and packed.is_product == name.startswith("product")
    assert copy.deepcopy(frozen).packed == {} and frozen.float().packed == {}


def test_bfloat16_that_is_not_packed_is_plain():
    settings, size = CASES["groups, dilation"]
    plain, frozen = pair(settings)
    x = torch.randn(2, 24, size, size).bfloat16()
    assert torch.equal(frozen.bfloat16()(x), plain.bfloat16()(x)) and frozen.packed == {}


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_of_groups_takes_the_fast_way_for_its_gradient(stride):
    settings = {"in_channels": 6, "out_channels": 6, "kernel_size": 5, "groups": 6, "padding": 2, "stride": stride}
    plain, frozen = pair(settings)
    plain, frozen = plain.bfloat16().double(), frozen.bfloat16()
    x = torch.randn(2, 6, 7, 9).bfloat16()
    truth, ours = x.double().requires_grad_(), x.clone().requires_grad_()
    expected, y = plain(truth), frozen(ours)
    assert isinstance(y.grad_fn.way, Grouped)
    upstream = torch.randn_like(expected).bfloat16()
    (gradient,) = torch.autograd.grad(y, ours, upstream)
    (wanted,) = torch.autograd.grad(expected, truth, upstream.double())
    assert bool(((gradient - wanted).abs() <= 2**-8 * wanted.abs() + 2**-10 * wanted.abs().max()).all())


class NormNet(nn.Module):
    """A group norm of its own, whose forward decides on what it sees, between convolutions."""

    def __init__(self, groups):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), timm.layers.GroupNorm(6, groups)
        self.plain, self.last = nn.GroupNorm(6 // groups, 6), nn.Conv2d(6, 5, 1)
        for norm in (self.norm, self.plain):
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.normal_(norm.bias)

    def forward(self, x):
        return self.last(self.plain(self.norm(self.conv(x)).relu()).relu()).mean((2, 3))


@pytest.mark.parametrize("groups", [1, 3])
def test_frozen_group_norms_are_of_planes_in_bfloat16(groups):
    torch.manual_seed(0)
    net, x = NormNet(groups).eval(), torch.randn(3, 3, 7, 9).to(memory_format=torch.channels_last)
    fused, _, reason = fuse(net)
    assert reason is None
    torch.testing.assert_close(fused(x), net(x))
    fused.bfloat16()
    maps, upstream = torch.randn(2, 6, 3, 4).bfloat16(), torch.randn(2, 6, 3, 4).bfloat16()
    for name in ("norm", "plain"):
        truth, ours = maps.double().requires_grad_(), maps.to(memory_format=torch.channels_last).requires_grad_()
        expected, y = net.get_submodule(name).bfloat16().double()(truth), fused.get_submodule(name)(ours)
        assert y.grad_fn.name() == "CloneBackward0"  # back from planes
        (gradient,) = torch.autograd.grad(y, ours, upstream)
        (wanted,) = torch.autograd.grad(expected, truth, upstream.double())
        for made, right in ((y, expected), (gradient, wanted)):
            assert bool(((made - right).abs() <= 2**-8 * right.abs() + 2**-8 * right.abs().max()).all())


class TensorFlowNet(nn.Module):
    """A convolution of timm that pads as TensorFlow does, by a decision on its input's size, and a BatchNorm."""

    def __init__(self):
        super().__init__()
        self.conv = timm.layers.Conv2dSame(4, 4, 3, 2, groups=4, bias=False)
        self.norm, self.act, self.head = nn.BatchNorm2d(4), nn.ReLU6(), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.act(self.norm(self.conv(x))).mean((2, 3)))


def test_a_convolution_with_a_forward_of_its_own_is_one_node_of_the_trace():
    torch.manual_seed(0)
    net = TensorFlowNet().eval()
    fused, _, reason = fuse(net)
    assert reason is None and isinstance(fused.conv, timm.layers.Conv2dSame)
    x = torch.randn(2, 4, 7, 10)
    torch.testing.assert_close(fused(x), net(x))
    y = copy.deepcopy(fused).conv.bfloat16()(x.bfloat16().requires_grad_())
    assert isinstance(y.grad_fn.way, Grouped)
    torch.testing.assert_close(y.float(), net.conv(x), atol=0.05, rtol=0.05)
