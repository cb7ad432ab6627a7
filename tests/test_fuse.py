"""Fused networks of libraries against the unfused: image gradients in float64 from forward hooks, what is fused."""

import copy
from collections import Counter
from statistics import median

import pytest
import torch
from hooked_gradients import fused_gradient, hooked_gradient, images, norms, randomize, relative, residual_calls
from torch import nn

from fastcondense.teachers.fuse import fuse
from fastcondense.vision import timm, torchvision


# One ReLU whose input rounds across zero moves a gradient by 1e-3 in either implementation: medians over seeds.
# Other networks are held to float64 below.
@pytest.mark.parametrize(("name", "bound"), [("resnet18", 1e-6), ("shufflenet_v2_x1_0", 1e-5), ("densenet121", 1e-5)])
def test_image_gradients_are_those_of_float64_hooks(name, bound):
    net = randomize(torchvision.models.get_model(name, weights=None, num_classes=10))
    fused, layers, reason = fuse(net)
    assert reason is None
    net.requires_grad_(False)
    exact = copy.deepcopy(net).double()
    errors, plain_errors = [], []
    for seed in range(3):
        x = images(seed)
        wanted, logits, moments = hooked_gradient(exact, x)
        made, made_logits, made_moments = fused_gradient(fused, layers, x)
        errors.append(relative(made, wanted))
        plain_errors.append(relative(hooked_gradient(net, x)[0], wanted))
        assert relative(made_logits.double(), logits) < 1e-5
        assert len(made_moments) == len(moments)
        for (mean, var), (wanted_mean, wanted_var) in zip(made_moments, moments, strict=True):
            # A map of one pixel has nearly no variance: its error is measured against the second moment.
            second = (wanted_var + wanted_mean**2).norm()
            assert relative(mean, wanted_mean) < 1e-5 and (var - wanted_var).norm() / second < 1e-5
    assert median(errors) <= bound
    assert median(errors) <= 2 * median(plain_errors)


@pytest.mark.parametrize(
    ("name", "with_relu", "with_residual", "without_relu"),
    [("resnet18", 17, 8, 3), ("resnet50", 49, 16, 4)],  # without: the downsampling shortcuts'
)
def test_every_relu_of_a_resnet_is_fused(name, with_relu, with_residual, without_relu):
    fused, layers, _ = fuse(torchvision.models.get_model(name, weights=None))
    assert sum(norm.activation == "relu" for norm in norms(layers)) == with_relu
    assert sum(norm.activation == "none" for norm in norms(layers)) == without_relu
    assert residual_calls(fused) == with_residual
    targets = [str(node.target) for node in fused.graph.nodes]
    assert not any("relu" in target for target in targets)


# MobileNets and EfficientNets add after a BatchNorm without activation; squeeze-and-excitation has no BatchNorm
@pytest.mark.parametrize(
    ("name", "activations", "num_residuals"),
    [
        ("mobilenet_v2", {"relu6": 35, "none": 17}, 10),
        ("mobilenet_v3_small", {"hardswish": 18, "relu": 5, "none": 11}, 6),
        ("efficientnet_b0", {"silu": 33, "none": 16}, 9),
    ],
)
def test_mobile_networks_are_fused_and_keep_every_digit(name, activations, num_residuals):
    net = randomize(torchvision.models.get_model(name, weights=None, num_classes=10)).double()
    fused, layers, reason = fuse(net)
    assert reason is None
    assert Counter(norm.activation for norm in norms(layers)) == activations
    assert residual_calls(fused) == num_residuals
    wanted, logits, moments = hooked_gradient(net, images(4))
    made, made_logits, made_moments = fused_gradient(fused, layers, images(4).double())
    assert relative(made_logits, logits) < 1e-10 and relative(made, wanted) < 1e-10
    for (mean, var), (wanted_mean, wanted_var) in zip(made_moments, moments, strict=True):
        assert relative(mean, wanted_mean) < 1e-10 and (var - wanted_var).norm() < 1e-10 * (1 + wanted_var.norm())


def test_layers_come_in_the_order_of_modules_with_their_names_and_statistics():
    net = randomize(torchvision.models.resnet18(weights=None))
    _, layers, _ = fuse(net)
    originals = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert [layer.name for layer in layers] == [name for name, _ in originals]
    for norm, (_, original) in zip(norms(layers), originals, strict=True):
        assert torch.equal(norm.running_mean, original.running_mean)
        assert torch.equal(norm.running_var, original.running_var)


def test_the_original_is_left_alone():
    net = torchvision.models.resnet18(weights=None, num_classes=10).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    fused, _, _ = fuse(net)
    fused(images(0))
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert isinstance(net.bn1, nn.BatchNorm2d)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet10t", "densenet121", "mobilenetv3_small_050"])
def test_timms_batch_norms_with_an_activation_keep_the_networks_numbers(name):
    net = randomize(timm.create_model(name, num_classes=10))
    fused, layers, reason = fuse(net)
    assert len(layers) == sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    if name == "efficientnet_b0":
        assert Counter(norm.activation for norm in norms(layers)) == {"silu": 33, "none": 16}
        assert reason is None and residual_calls(fused) == 9
    x = images(3, 64)
    with torch.no_grad():
        wanted = copy.deepcopy(net).double()(x.double())
        assert relative(fused(x).double(), wanted) < 1e-5
