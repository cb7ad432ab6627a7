"""Encoders: which layer is the classifier, momentum copies against float64, BatchNorms of parts by hand."""

import copy

import pytest
import torch
from torch import nn

from fastcondense.networks import zoo
from fastcondense.networks.encoders import classifier_name, encode, feature_size, follow


@pytest.mark.parametrize(
    ("architecture", "name", "features"),
    [
        ("zoo/convnet2", "head", 128),
        ("zoo/resnet20", "linear", 64),
        ("torchvision/resnet18", "fc", 512),
        ("torchvision/mobilenet_v2", "classifier.1", 1280),
        ("timm/resnet18", "fc", 512),
        ("tests.architectures:fd_mobilenet", "classifier", 512),
    ],
)
def test_the_classifier_is_found(architecture, name, features):
    assert classifier_name(architecture) == name
    assert feature_size(zoo.build(architecture, 7), name) == features


def test_logits_that_no_linear_layer_makes_are_refused():
    with pytest.raises(ValueError, match=r"one nn\.Linear; torchvision/squeezenet1_1 makes them by classifier\.1"):
        classifier_name("torchvision/squeezenet1_1")


def test_the_copy_follows_and_keeps_its_own_buffers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    copied = copy.deepcopy(net).requires_grad_(False)
    assert not any(p.requires_grad for p in copied.parameters()) and all(p.requires_grad for p in net.parameters())
    wanted = {name: p.double() for name, p in copied.named_parameters()}
    for decay in (0.9, 0.99, 1.0):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
            net[1].running_mean.add_(1)
        follow(copied, net, torch.tensor(decay))
        for name, p in net.named_parameters():
            wanted[name] = decay * wanted[name] + (1 - decay) * p.detach().double()
    for name, p in copied.named_parameters():
        torch.testing.assert_close(p.double(), wanted[name], rtol=1e-6, atol=1e-6)
        assert p.data_ptr() != net.get_parameter(name).data_ptr()
    assert torch.equal(copied[1].running_mean, torch.zeros(4))


@pytest.mark.parametrize(("count", "parts", "sizes"), [(8, 2, [4, 4]), (7, 3, [3, 2, 2]), (5, 4, [3, 2]), (2, 8, [2])])
def test_parts_have_statistics_of_their_own(count, parts, sizes):
    torch.manual_seed(count)
    x = torch.randn(count, 3, 5, 5)
    made = encode(nn.BatchNorm2d(3), x, parts)
    for part, got in zip(x.double().split(sizes), made.split(sizes), strict=True):
        mean, var = part.mean((0, 2, 3), keepdim=True), part.var((0, 2, 3), keepdim=True, correction=0)
        torch.testing.assert_close(got.double(), (part - mean) / (var + 1e-5).sqrt(), rtol=1e-5, atol=1e-5)
