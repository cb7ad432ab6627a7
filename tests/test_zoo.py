"""Architectures by name: sizes known from the literature, output shapes, and names that do not exist."""

import sys

import pytest
import torch
from torch import nn

from fastcondense.networks.zoo import ZOO, build, channels_last
from fastcondense.vision import timm, torchvision


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("resnet50", 23_520_842),
        ("resnet101", 42_512_970),
        ("resnet20", 269_722),
        ("resnet56", 853_018),
        ("convnet3_in", 319_626),
        ("wrn16_2", 691_674),
        ("densenet121", 6_956_298),
        ("mobilenet_v2_x0_5", 697_546),
        ("mobilenet_v2_x1_0", 2_296_922),
        ("shufflenet_v2_x0_5", 352_042),
        ("shufflenet_v2_x0_5_1x1", 352_042 - 24 * 3 * 8),
    ],
)
def test_parameter_counts_are_the_published_ones(name, parameters):
    assert count(build(f"zoo/{name}", 10)) == parameters


def inputs_of(net, size, *kinds):
    """What enters each module of these kinds, in the order of net.modules(): channels and side; and what leaves it."""
    seen = {}
    modules = [module for module in net.modules() if isinstance(module, kinds)]
    for module in modules:
        module.register_forward_hook(lambda this, x, y: seen.update({this: (*x[0].shape[1:3], y.shape[2])}))
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, size, size))
    return [(module, *seen[module]) for module in modules]


@pytest.mark.parametrize(
    ("name", "millions", "hooks", "last"),
    [
        ("mobilenet_v2_x0_5", 6.41, 106, (160, 2)),
        ("mobilenet_v2_x1_0", 91.15, 114, (320, 4)),
        ("shufflenet_v2_x0_5", 10.90, 112, (192, 4)),
        ("shufflenet_v2_x0_5_1x1", 10.31, 112, (192, 4)),
    ],
)
def test_mobile_networks_cost_what_the_published_ones_do_at_32_pixels(name, millions, hooks, last):
    net = build(f"zoo/{name}", 10)
    seen = inputs_of(net, 32, nn.Conv2d, nn.BatchNorm2d)
    convs = [(module, side) for module, _, _, side in seen if isinstance(module, nn.Conv2d)]
    macs = sum(conv.weight.numel() * side**2 for conv, side in convs) + 1024 * 10
    macs += 256 * 10 if "mobilenet" in name else 0  # 1280 features
    assert (round(macs / 1e6, 2), len(seen)) == (millions, hooks)
    assert seen[-2][1:3] == last and isinstance(seen[-2][0], nn.Conv2d)


@pytest.mark.parametrize(
    ("name", "stem", "width", "is_projected"), [("mobilenet_v2_x0_5", 2, 0.5, False), ("mobilenet_v2_x1_0", 1, 1, True)]
)
def test_mobilenets_hooks_come_in_the_published_order_with_the_published_shapes(name, stem, width, is_projected):
    wanted, inputs, side = (
        [("Conv2d", 3, 32), ("BatchNorm2d", int(32 * width), 32 // stem)],
        int(32 * width),
        32 // stem,
    )
    for expansion, channels, count, stride in (
        *((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for step in [stride] + [1] * (count - 1):
            outputs, middle = int(channels * width), inputs * expansion
            wanted += [("Conv2d", inputs, side), ("BatchNorm2d", middle, side), ("Conv2d", middle, side)]
            begun, side = side, side // step
            wanted += [("BatchNorm2d", middle, side), ("Conv2d", middle, side), ("BatchNorm2d", outputs, side)]
            if is_projected and step == 1 and inputs != outputs:
                wanted += [("Conv2d", inputs, begun), ("BatchNorm2d", outputs, side)]
            inputs = outputs
    wanted += [("Conv2d", inputs, side), ("BatchNorm2d", 1280, side)]
    seen = inputs_of(build(f"zoo/{name}", 10), 32, nn.Conv2d, nn.BatchNorm2d)
    assert [(type(module).__name__, channels, side) for module, channels, side, _ in seen] == wanted


def test_mobilenet_of_half_width_has_the_names_of_the_published_statistics():
    names = [
        name for name, module in build("zoo/mobilenet_v2_x0_5", 10).named_modules() if isinstance(module, nn.Conv2d)
    ]
    assert names[:5] == ["conv1.0", "blocks.0.0.conv.0", "blocks.0.0.conv.3", "blocks.0.0.conv.6", "blocks.1.0.conv.0"]
    assert names[-2:] == ["blocks.6.0.conv.6", "conv2.0"]


@pytest.mark.parametrize(("name", "kernel"), [("shufflenet_v2_x0_5", 3), ("shufflenet_v2_x0_5_1x1", 1)])
def test_the_small_shufflenet_has_the_stem_of_its_name_and_no_pool(name, kernel):
    (stem, *_), (_, *second) = inputs_of(build(f"zoo/{name}", 10), 32, nn.Conv2d)[:2]
    assert (stem.kernel_size, stem.stride, stem.bias) == ((kernel, kernel), (1, 1), None)
    assert second == [24, 32, 16]


@pytest.mark.parametrize(("depth", "width"), [(1, 128), (3, 128), (6, 128), ("3_w32", 32), ("3_w64", 64)])
def test_convnet_has_the_convolutions_norms_and_head_of_its_name(depth, width):
    blocks = int(str(depth)[0])
    convolutions = 27 * width + (blocks - 1) * 9 * width * width
    assert count(build(f"zoo/convnet{depth}", 7)) == convolutions + blocks * 2 * width + 7 * width + 7


@pytest.mark.parametrize(
    ("name", "depth", "width"),
    [("convnet1_in", 1, 128), ("convnet2_in", 2, 128), ("convnet3_in", 3, 128), ("convnet3_w32_in", 3, 32)],
)
def test_the_convnets_with_instance_normalisation_are_those_of_torchs_instance_norm(name, depth, width):
    net, blocks, inputs = build(f"zoo/{name}", 7), [], 3
    for conv, norm in zip(net.convs, net.norms, strict=True):
        plain = nn.InstanceNorm2d(width, affine=True)
        nn.init.uniform_(norm.weight), nn.init.normal_(norm.bias)
        plain.load_state_dict(norm.state_dict())
        assert (conv.in_channels, conv.out_channels, conv.kernel_size, conv.bias) == (inputs, width, (3, 3), None)
        blocks += [conv, plain, nn.ReLU(), nn.AvgPool2d(2)]
        inputs = width
    assert len(net.convs) == depth and net.head.in_features == width * (32 // 2**depth) ** 2
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x), nn.Sequential(*blocks, nn.Flatten(), net.head)(x), rtol=1e-4, atol=1e-5)


def test_the_small_densenet_has_a_stem_without_norm_and_pool():
    sizes = []
    net = build("zoo/densenet121", 10).eval()
    net.features.denseblock1.register_forward_hook(lambda _module, x, _y: sizes.append(x[0].shape))
    with torch.no_grad():
        net(torch.zeros(1, 3, 16, 16))
    assert sizes == [(1, 64, 16, 16)]
    first = next(name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d))
    assert first == "features.denseblock1.denselayer1.norm1"


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_takes_8_32_and_33_pixels(name):
    net = build(f"zoo/{name}", 7).eval()
    with torch.no_grad():
        for size in (8, 32, 33):
            assert net(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_the_cifar_stem_keeps_the_resolution():
    sizes = []
    net = build("zoo/resnet18", 10)
    net.layer1.register_forward_hook(lambda _module, x, y: sizes.append((x[0].shape, y.shape)))
    net(torch.zeros(2, 3, 32, 32))
    assert sizes == [((2, 64, 32, 32), (2, 64, 32, 32))]


def test_option_a_shortcuts_have_no_parameters_and_take_every_second_pixel():
    block = build("zoo/resnet20", 10).layer2[0].eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 9, 9)
    y = block(x)
    assert y.shape == (2, 32, 5, 5)
    torch.testing.assert_close(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any()


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("zoo/resnet19", "resnet1[08]"),
        ("zoo/convnet3w32", "convnet3_w32"),
        ("torchvision/resnet_18", "resnet18"),
        ("torchvision/mobilenetv2", "mobilenet_v2"),
        ("timm/efficientnetb0", "efficientnet_b0"),
    ],
)
def test_an_unknown_name_gives_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"has no .*{name.split('/')[1]}'; the nearest is '{near}'"):
        build(name, 10)


@pytest.mark.parametrize("name", ["resnet18", "hub/resnet18", ""])
def test_a_name_without_a_known_source_lists_the_sources(name):
    with pytest.raises(ValueError, match=f"'{name}' must be zoo/NAME, torchvision/NAME, timm/NAME or module:function"):
        build(name, 10)


def test_weights_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="zoo/resnet18 has no pretrained weights"):
        build("zoo/resnet18", 10, "default")
    with pytest.raises(ValueError, match=r"no 'IMAGENET1K_V9'; the nearest is 'IMAGENET1K_V[12]'"):
        build("torchvision/resnet50", 1000, "IMAGENET1K_V9")

    with pytest.raises(ValueError, match=r"timm/resnet10t has no 'c3_in1'; the nearest is 'c3_in1k'"):
        build("timm/resnet10t", 10, "c3_in1")
    with pytest.raises(ValueError, match="timm/mixer_s32_224 has no pretrained weights"):
        build("timm/mixer_s32_224", 10, "default")


@pytest.mark.parametrize(
    ("network", "function", "file", "place"),
    [
        ("torchvision/resnet18", "torchvision.models.get_model", "resnet18-f37072fd.pth", "put it into"),
        ("timm/resnet10t", "timm.create_model", "timm/resnet10t.c3_in1k/resolve/main/model.safetensors", "copy the"),
    ],
)
def test_without_a_network_the_file_its_place_and_the_flag_are_named(monkeypatch, network, function, file, place):
    def offline(*_, **__):
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr(function, offline)
    words = (
        rf"cannot be downloaded \(Name or service not known\): get https://\S*{file} .*{place} .*--squeeze.weights FILE"
    )
    with pytest.raises(ValueError, match=words):
        build(network, 10, "default")


def test_torchvision_and_timm_names_give_their_networks():
    net = build("torchvision/shufflenet_v2_x0_5", 12)
    assert isinstance(net, torchvision.models.ShuffleNetV2) and net.fc.out_features == 12
    net = build("timm/resnet10t", 12)
    assert isinstance(net, timm.models.ResNet) and net.fc.out_features == 12


def test_channels_last_is_set_in_place():
    net = build("zoo/convnet3_w32", 10)
    assert channels_last(net) is net
    assert net.convs[1].weight.is_contiguous(memory_format=torch.channels_last)


# --- the user's own --------------------------------------------------------------------------------------------------

SOURCE = """
from torch import nn
width = {width}
def make(num_classes):
    return nn.Linear(width, num_classes)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def is_linear(net, inputs, outputs):
    return isinstance(net, nn.Linear) and (net.in_features, net.out_features) == (inputs, outputs)


def test_module_and_function_of_the_current_folder(folder):
    (folder / "my_nets_a.py").write_text(SOURCE.format(width=3))
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").touch()
    (folder / "my_package" / "nets.py").write_text(SOURCE.format(width=5))
    assert is_linear(build("my_nets_a:make", 4), 3, 4)
    assert is_linear(build("my_package.nets:make", 4), 5, 4)


def test_file_and_function_absolute_or_relative(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "my_nets_b.py").write_text(SOURCE.format(width=3))
    (folder / "my_nets_c.py").write_text(SOURCE.format(width=4))
    assert is_linear(build(f"{folder / 'sub' / 'my_nets_b.py'}:make", 2), 3, 2)
    assert is_linear(build("my_nets_c.py:make", 2), 4, 2)
    assert is_linear(build("sub/my_nets_b.py:make", 2), 3, 2)


def test_two_files_of_one_name_are_two_modules(folder):
    for width, part in ((3, "a"), (4, "b")):
        (folder / part).mkdir()
        (folder / part / "my_nets_d.py").write_text(SOURCE.format(width=width))
    assert is_linear(build("a/my_nets_d.py:make", 2), 3, 2)
    assert is_linear(build("b/my_nets_d.py:make", 2), 4, 2)


def test_a_file_named_as_a_known_module_is_the_file(folder):
    (folder / "calendar.py").write_text(SOURCE.format(width=3))
    import calendar  # noqa: F401

    assert is_linear(build("calendar.py:make", 2), 3, 2)


def test_a_missing_file_module_or_function_is_named(folder):
    (folder / "my_nets_e.py").write_text(SOURCE.format(width=3))
    with pytest.raises(ValueError, match=r"there is no file none\.py"):
        build("none.py:make", 2)
    with pytest.raises(ValueError, match=r"'no_such_module:make' cannot be imported: .*no_such_module"):
        build("no_such_module:make", 2)
    for function in ("missing", "width", ""):
        with pytest.raises(ValueError, match=f"my_nets_e has no function '{function}'"):
            build(f"my_nets_e:{function}", 2)
