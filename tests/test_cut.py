"""The beginning of a fused network gives what the module reads in the network as it was."""

import dataclasses

import pytest
import torch
from torch import nn

from fastcondense.networks import zoo
from fastcondense.recipe.settings import Dataset
from fastcondense.teachers.cut import Cut
from fastcondense.teachers.teacher import Teacher

LAYERS = [
    ("torchvision/resnet18", ("conv1", "bn1", "layer1", "layer3", "layer3.0.bn2", "layer3.0.downsample", "fc")),
    ("zoo/convnet3_w32", ("convs.1", "pool", "norms.2", "head")),
    ("zoo/resnet20", ("layer2", "layer3.2", "linear")),
    ("torchvision/densenet121", ("features.denseblock2", "features.transition1.conv", "classifier")),
    ("timm/efficientnet_b0", ("blocks.2", "blocks.2.0.se", "global_pool", "classifier")),
]


def network(architecture):
    torch.manual_seed(0)
    net = zoo.build(architecture, 5).eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return net


def teacher(net, size=32, statistics=("bn",)):
    return Teacher.of(net, "net", range(5), range(5), Dataset(image_size=size, resize=size), statistics, 4)


@pytest.mark.parametrize(("architecture", "layers"), LAYERS, ids=[name for name, _ in LAYERS])
def test_equals_what_the_module_reads(architecture, layers):
    net, images = network(architecture), torch.randn(2, 3, 33, 33)
    expected = {}
    for name in layers:

        def keep(_, inputs, name=name):
            expected.setdefault(name, inputs[0].detach().clone())

        net.get_submodule(name).register_forward_pre_hook(keep)
    net(images)
    for statistics in (("bn",), ("bn", "conv", "patch")) if architecture == "torchvision/resnet18" else (("bn",),):
        whole = teacher(network(architecture), statistics=statistics)
        for name in layers:
            ours, wanted = Cut(whole, name)(images), expected[name]
            assert ours.shape == wanted.shape and (ours - wanted).norm() < 5e-6 * wanted.norm()


def test_nothing_behind_is_left_and_nothing_is_kept():
    whole = teacher(network("torchvision/resnet18"))
    cut = Cut(whole, "layer3")
    names = {name for name, _ in cut.net.named_parameters()}
    assert any(name.startswith("layer2.1.") for name in names)
    assert not any(name.startswith(("layer3", "layer4", "fc")) for name in names)
    assert cut.net.get_parameter("conv1.weight") is whole.fused.get_parameter("conv1.weight")
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    assert cut(images).requires_grad and cut.keepers and not any(keeper.kept for keeper in cut.keepers)
    assert whole(images)[0].shape == (1, 5) and len(whole(images)[1]) == 20  # it still works as a whole


def test_features_of_a_cast_network_are_float32():
    whole = teacher(network("zoo/resnet20")).cast(torch.bfloat16)
    assert Cut(whole, "linear")(torch.randn(2, 3, 32, 32).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("name", ["layer5", "", "layer3.0.relu"])
def test_unknown_modules_are_refused_with_near_names(name):
    whole = teacher(network("torchvision/resnet18"))
    with pytest.raises(ValueError, match=rf"no module '{name}' whose input could be matched; near: .*layer") as error:
        Cut(whole, name)
    assert "@" not in str(error.value)


def test_an_untraceable_network_is_refused():
    whole = dataclasses.replace(teacher(network("zoo/resnet20")), fused=network("zoo/resnet20"), note="a loop")
    with pytest.raises(ValueError, match="can trace; teacher net is not: a loop"):
        Cut(whole, "layer2")
