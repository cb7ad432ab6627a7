"""bfloat16 operators on a CPU by ways of ours: against float64 at odd shapes, and only where these are faster."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastcondense.networks.cpu_operators import CpuOperators
from fastcondense.networks.grouped_convolution import Grouped
from fastcondense.networks.matrix_convolution import Products, is_faster_for_maps
from fastcondense.networks.precision import mixed

CPU = torch.device("cpu")
CASES = {  # channels and kernel, what else Conv2d is told, size of the maps, whether the maps are products too
    "one position": ((97, 131, 3), {"padding": 1}, (1, 1), True),
    "even kernel": ((150, 160, (2, 3)), {"padding": (1, 0)}, (1, 4), False),
    "unequal sides": ((150, 170, (3, 2)), {"padding": (1, 1)}, (2, 1), False),
    "stride": ((65, 129, 3), {"padding": 1, "stride": 2, "bias": False}, (4, 3), False),
    "stride, one position": ((97, 131, 3), {"stride": 2}, (4, 3), True),
    "one pixel": ((190, 177, 1), {"bias": False}, (3, 5), False),
    "border beyond the kernel": ((220, 200, 1), {"padding": 1}, (1, 1), False),
    "whole map": ((97, 131, (3, 4)), {}, (3, 4), True),
}
GROUPED = {  # channels and kernel, what else Conv2d is told, size of the maps
    "depthwise": ((7, 7, 3), {"padding": 1}, (5, 6)),
    "depthwise, stride": ((18, 18, 3), {"padding": 1, "stride": 2, "bias": False}, (9, 6)),
    "depthwise, large": ((6, 6, (5, 7)), {"padding": (2, 1)}, (8, 9)),
    "depthwise, large, stride": ((5, 5, 5), {"padding": 2, "stride": (2, 1)}, (7, 8)),
    "depthwise, no border": ((9, 9, (2, 3)), {}, (4, 5)),
    "depthwise, border beyond the kernel": ((3, 3, 1), {"padding": 1}, (4, 3)),
    "two filters a map": ((6, 12, 3), {"padding": 1}, (5, 4)),
    "four maps a group": ((16, 24, 3), {"padding": 1, "groups": 4}, (6, 5)),
    "four maps a group, stride": ((16, 8, 3), {"padding": 1, "groups": 4, "stride": 2}, (6, 5)),
    "four maps a group, one pixel": ((16, 8, 1), {"groups": 4}, (3, 4)),
}


def way(y):
    """That by which maps were made, None if PyTorch's own."""
    return getattr(y.grad_fn, "way", None)


def is_product(y):
    return isinstance(way(y), Products)


def assert_rounded(ours, right):
    error = (ours.detach().double() - right.detach()).abs()
    assert bool((error <= 2**-8 * right.detach().abs() + 2**-10 * right.detach().abs().max()).all())


def compare(layer, size, layout):
    """Maps and gradients with those of float64, of the same rounded inputs: what is left is the rounding of results."""
    torch.manual_seed(0)
    layer = layer.to(memory_format=layout)
    x = torch.randn(5, layer.in_channels, *size).to(memory_format=layout).requires_grad_()
    with mixed("bf16", CPU):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    upstream = torch.randn(y.shape).bfloat16()
    y.backward(upstream)

    truth = copy.deepcopy(layer).double()
    truth.load_state_dict({key: value.bfloat16().double() for key, value in layer.state_dict().items()})
    truth.zero_grad()
    wide = x.detach().bfloat16().double().requires_grad_()
    expected = truth(wide)
    expected.backward(upstream.double())
    pairs = [(y, expected), (x.grad, wide.grad)]
    pairs += [(p.grad, truth.get_parameter(key).grad) for key, p in layer.named_parameters()]
    for ours, right in pairs:
        assert_rounded(ours, right)
    assert layer.weight.grad.dtype == torch.float32 == x.grad.dtype
    assert layer.weight.grad.stride() == layer.weight.stride() or layout == torch.contiguous_format
    return y


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_float64(name, layout):
    layers, settings, size, are_maps_products = CASES[name]
    layer = nn.Conv2d(*layers, **settings)
    y = compare(layer, size, layout)
    assert is_product(y)
    found = is_faster_for_maps((5, layers[0], *size), layer.weight.shape, layer.stride, layer.padding)
    assert found == are_maps_products


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", GROUPED)
def test_convolutions_of_groups_are_those_of_float64(name, layout):
    layers, settings, size = GROUPED[name]
    y = compare(nn.Conv2d(*layers, **{"groups": layers[0]} | settings), size, layout)
    assert isinstance(way(y), Grouped) and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("layers", "settings", "size"),
    [
        ((128, 128, 3), {"padding": 2, "dilation": 2, "groups": 2}, 2),
        ((128, 128, 3), {"padding": 2, "dilation": 2}, 2),
        ((128, 128, 3), {"padding": "same"}, 2),
        ((128, 128, 3), {"padding": 1}, 6),  # 36 positions; products are for 32
        ((3, 64, 7), {}, 7),
    ],
)
def test_other_convolutions_are_pytorchs(layers, settings, size):
    layer, x = nn.Conv2d(*layers, **settings), torch.randn(2, layers[0], size, size)
    with mixed("bf16", CPU):
        y = layer(x)
    assert way(y) is None and y.dtype == torch.bfloat16
    assert torch.equal(y, F.conv2d(x.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16(), *about(layer)))


@pytest.mark.parametrize("name", [*CASES, *GROUPED])
def test_an_activation_may_take_the_place_of_maps(name):
    """As those of EfficientNets' squeeze-and-excitation do."""
    layers, settings, size = {**CASES, **GROUPED}[name][:3]
    torch.manual_seed(0)
    layer = nn.Conv2d(*layers, **({"groups": layers[0]} if name in GROUPED else {}) | settings)
    x = torch.randn(5, layers[0], *size)
    found = []
    for is_in_place in (False, True):
        layer.zero_grad()
        with mixed("bf16", CPU):
            y = F.silu(layer(x), inplace=is_in_place)
        y.float().square().sum().backward()
        found.append((y, layer.weight.grad))
    for separate, in_place in zip(*found, strict=True):
        assert torch.equal(separate, in_place)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("channels", "groups"), [(6, 6), (6, 3), (5, 1)])
def test_group_norms_are_of_planes(channels, groups, layout):
    torch.manual_seed(0)
    layer = nn.GroupNorm(groups, channels)
    nn.init.uniform_(layer.weight, 0.5, 2.0)
    nn.init.normal_(layer.bias)
    x = torch.randn(3, channels, 5, 7).bfloat16().to(memory_format=layout).requires_grad_()
    with mixed("bf16", CPU):
        y = layer(x)
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)
    upstream = torch.randn(y.shape).bfloat16()
    y.backward(upstream)

    truth, inputs = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    truth.zero_grad()
    expected = truth(inputs)
    expected.backward(upstream.double())
    assert_rounded(y, expected)
    assert_rounded(x.grad, inputs.grad)
    assert_rounded(layer.weight.grad, truth.weight.grad)
    assert_rounded(layer.bias.grad, truth.bias.grad)


def about(layer):
    return layer.stride, layer.padding, layer.dilation, layer.groups


def test_images_without_a_batch_and_calls_in_other_forms_are_pytorchs():
    layer, x = nn.Conv2d(128, 128, 1), torch.randn(128, 1, 1)
    with CpuOperators(), torch.autocast("cpu", torch.bfloat16):
        assert is_product(layer(x[None])) and not is_product(layer(x))
        assert not is_product(F.conv2d(input=x[None], weight=layer.weight))
        assert not is_product(F.conv2d(x[None], layer.weight, layer.bias, 1, 0, 1, 1))


def test_fp32_is_left_alone():
    layer, x = nn.Conv2d(128, 128, 3, padding=1), torch.randn(2, 128, 2, 2)
    with mixed("fp32", CPU):
        y = layer(x)
    assert torch.equal(y, layer(x)) and y.dtype == torch.float32


def test_a_frozen_layer_and_its_images_need_no_gradient():
    layer, x = nn.Conv2d(128, 128, 3, padding=1), torch.randn(2, 128, 2, 2)
    layer.weight.requires_grad_(False)
    images = x.clone().requires_grad_()
    with mixed("bf16", CPU):
        layer(images).sum().backward()
        assert images.grad is not None and layer.weight.grad is None
        layer.weight.requires_grad_(True)
        layer(x).sum().backward()
        assert layer.weight.grad is not None
        with torch.no_grad():
            assert torch.equal(layer(x), layer(images))
