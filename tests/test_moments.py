"""Moments of BatchNorms', convolutions' and patches' inputs in a fused network, against float64 forward hooks."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastcondense.teachers.fuse import fuse
from fastcondense.teachers.moments import ConvolutionTap, Keeper, take_patch_moments
from fastcondense.vision import torchvision


def network(name):
    """A network whose statistics do not hide a mistake."""
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None, num_classes=10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval().requires_grad_(False)


def channel_moments(x):
    return x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)


def patch_moments(x, p):
    """As the specification writes it: resize to multiples of p, cut into p x p tiles, pool everything but the tile."""
    height, width = (-(-side // p) * p for side in x.shape[2:])
    x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    tiles = F.unfold(x, p, stride=p).transpose(1, 2)  # [N, tiles, C p p]
    return tiles.mean((0, 2)), tiles.transpose(0, 1).flatten(1).var(1, correction=0)


def hooked(net, x, statistics, p):
    """{layer: its vectors} of the unfused network, in the order of its modules."""
    found = {}

    def keep(name, is_norm):
        def hook(_, args, __):
            y = args[0].clone()
            vectors = channel_moments(y) if is_norm or "conv" in statistics else ()
            found[name] = vectors + (() if is_norm or "patch" not in statistics else patch_moments(y, p))

        return hook

    handles, names = [], []
    for name, module in net.named_modules():
        is_norm = isinstance(module, nn.BatchNorm2d)
        wanted = (
            "bn" in statistics if is_norm else isinstance(module, nn.Conv2d) and {"conv", "patch"} & set(statistics)
        )
        if wanted:
            names.append(name)
            handles.append(module.register_forward_hook(keep(name, is_norm)))
    logits = net(x)
    for handle in handles:
        handle.remove()
    return {name: found[name] for name in names if name in found}, logits


def distance(moments):
    """A scalar in which every moment of every layer has another weight."""
    generator = torch.Generator().manual_seed(1)
    total = 0.0
    for vectors in moments.values():
        for vector in vectors:
            total = total + (vector * torch.randn(len(vector), generator=generator, dtype=torch.float64)).sum()
    return total


CASES = [
    ("resnet18", ("bn", "conv", "patch"), 16, 64),
    ("resnet18", ("conv",), 16, 48),
    ("resnet18", ("patch",), 4, 40),
    ("mobilenet_v2", ("bn", "conv", "patch"), 4, 36),
    ("efficientnet_b0", ("bn", "conv", "patch"), 16, 40),
    ("densenet121", ("bn", "conv"), 16, 32),
    ("alexnet", ("bn", "conv", "patch"), 16, 70),
]


def seen(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Logits, after which all layers have their moments."""
    logits = net(x)
    take_patch_moments(module for module in net.modules() if isinstance(module, Keeper))
    return logits


@pytest.mark.parametrize(("name", "statistics", "p", "size"), CASES)
def test_moments_and_image_gradient_equal_float64_hooks(name, statistics, p, size):
    net = network(name)
    exact = copy.deepcopy(net).double()
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    truth = x.double().requires_grad_()
    wanted, logits = hooked(exact, truth, statistics, p)
    fused, layers, reason = fuse(copy.deepcopy(net).double(), statistics, p)
    assert reason is None
    ours = x.double().contiguous(memory_format=torch.channels_last).requires_grad_()
    made_logits = seen(fused, ours)
    made = {layer.name: layer.moments for layer in layers}
    torch.testing.assert_close(made_logits, logits, rtol=1e-9, atol=1e-9)
    assert list(made) == list(wanted)
    for key, vectors in wanted.items():
        for vector, truth_vector in zip(made[key], vectors, strict=True):
            torch.testing.assert_close(vector, truth_vector, rtol=1e-8, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")
    losses = (distance(made) + made_logits.square().sum(), distance(wanted) + logits.square().sum())
    gradient, expected = (torch.autograd.grad(loss, at)[0] for loss, at in zip(losses, (ours, truth), strict=True))
    assert float((gradient - expected).norm() / expected.norm()) < 1e-9


def test_float32_moments_are_near_float64():
    net = network("resnet18")
    x = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    wanted, _ = hooked(copy.deepcopy(net).double(), x.double(), ("bn", "conv", "patch"), 16)
    fused, layers, _ = fuse(net, ("bn", "conv", "patch"), 16)
    seen(fused, x)
    for layer in layers:
        for vector, truth in zip(layer.moments, wanted[layer.name], strict=True):
            assert float((vector.double() - truth).norm() / truth.norm()) < 1e-5, layer.name


def test_no_map_is_read_for_moments_that_somebody_else_takes():
    fused, layers, _ = fuse(network("resnet18"), ("bn", "conv"))
    taps = [module for module in fused.modules() if isinstance(module, ConvolutionTap)]
    # 20 convolutions read 17 maps: 16 are written by a BatchNorm, or the pooling behind it; the last is the image.
    assert len(layers) == 40
    assert sum(tap.has_channels for tap in taps) == 1
    assert len({node.args[0] for node in fused.graph.nodes if node.target in dict(fused.named_modules())}) > 0
    assert (
        sum(isinstance(dict(fused.named_modules()).get(str(n.target)), ConvolutionTap) for n in fused.graph.nodes) == 17
    )


def test_an_untraceable_network_has_the_same_moments():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network("resnet18")

        def forward(self, x):
            return self.net(x) if x.mean() < 100 else x

    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    wanted, _ = hooked(Branching().double(), x, ("bn", "conv", "patch"), 4)
    fused, layers, reason = fuse(Branching().double(), ("bn", "conv", "patch"), 4)
    assert reason is not None
    seen(fused, x)
    assert [layer.name for layer in layers] == list(wanted)
    for layer in layers:
        for vector, truth in zip(layer.moments, wanted[layer.name], strict=True):
            torch.testing.assert_close(vector, truth, rtol=1e-9, atol=1e-10)
