"""Architectures by name: zoo/NAME for small images, torchvision/NAME, timm/NAME, or the user's own module:function."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .. import trust, vision
from ..user_functions import load_function
from ..words import bytes_in_words
from .cifar_resnet import CifarResNet
from .mobilenet import MobileNetV2
from .pretrained import nearest, of_timm, of_torchvision

_LARGEST_UNASKED = 2 << 30  # bytes


def build(architecture: str, num_classes: int, weights: str | None = None) -> nn.Module:
    """An untrained network, or a pretrained one of torchvision (a weights name) or timm (a tag), "default" for theirs.

    Raises ValueError for an unknown name, with the nearest one, for weights that do not exist, and for a large network
    that only the recipe of a run or bundle names.
    """
    if not trust.is_given(architecture):
        sizes = shapes(architecture, num_classes).values()
        if (size := 4 * sum(map(math.prod, sizes))) > _LARGEST_UNASKED:
            raise ValueError(
                f"{architecture} with {num_classes} outputs is a network of {bytes_in_words(size)}, which the recipe "
                "of a run or bundle names and your command line does not; if you mean it, name it as if it were code"
            )
    return _build(architecture, num_classes, weights)


def shapes(architecture: str, num_classes: int) -> dict[str, tuple[int, ...]]:
    """The shapes of an untrained network's tensors, for which no memory is taken; none of the user's own function."""
    if ":" in architecture:
        return {}
    with _WithoutMemory():
        return {name: tuple(tensor.shape) for name, tensor in _build(architecture, num_classes).state_dict().items()}


class _WithoutMemory(TorchFunctionMode):
    """Weights, which layers begin as torch.empty, on the meta device; other tensors are there."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = {**(kwargs or {}), **({"device": "meta"} if function is torch.empty else {})}
        return function(*args, **kwargs)


def _build(architecture: str, num_classes: int, weights: str | None = None) -> nn.Module:
    if ":" in architecture:
        try:
            net = load_function(architecture, "architecture")(num_classes=num_classes)
        except ValueError as error:
            if isinstance(error.__cause__, TypeError):
                text = error.__cause__
                raise ValueError(f"architecture {architecture!r} must take num_classes=...: {text}") from error
            raise
        if not isinstance(net, nn.Module):
            raise ValueError(f"architecture {architecture!r} must give a torch.nn.Module, got {type(net).__name__}")
        return net
    check_name(architecture)
    source, _, name = architecture.partition("/")
    if source == "zoo":
        if weights is not None:
            raise ValueError(f"{architecture} has no pretrained weights; use train or a checkpoint file")
        return ZOO[name](num_classes)
    if source == "torchvision":
        return of_torchvision(name, num_classes, weights)
    if weights is None:
        return vision.timm.create_model(name, num_classes=num_classes)
    net = of_timm(name, weights)
    anything: Any = net  # torch's annotations know no attributes of timm's networks
    if getattr(net, "num_classes", None) == 0:  # self-supervised: whoever asks for it trains a probe
        anything.reset_classifier(num_classes)
    return net


def tried(net: nn.Module, size: int, what: str) -> Any:
    """What a network, put into evaluation mode, gives for a black image. Raises ValueError if it cannot take one."""
    try:
        with torch.no_grad():
            return net.eval()(black(size))
    except Exception as error:  # a network of others may raise anything
        raise ValueError(f"{what} cannot take {size} x {size} images: {' '.join(str(error).split())}") from error


def black(size: int, device: torch.device | None = None) -> torch.Tensor:
    """An image of zeros, [1, 3, S, S]."""
    return torch.zeros(1, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)


def check_name(architecture: str) -> None:
    """Raises ValueError, as `build`, for a name that there is not; a function of the user's own is not loaded."""
    source, _, name = architecture.partition("/")
    if source == "zoo":
        nearest(name, ZOO, source)
    elif source == "torchvision":
        nearest(name, vision.torchvision.models.list_models(module=vision.torchvision.models), source)
    elif source == "timm":
        if not vision.timm.is_model(name):
            near = difflib.get_close_matches(name, vision.timm.list_models(), 1, 0.0)[0]
            raise ValueError(f"timm has no model {name!r}; the nearest is {near!r}")
    elif ":" not in architecture:
        raise ValueError(
            f"architecture {architecture!r} must be zoo/NAME, torchvision/NAME, timm/NAME or module:function"
        )


def trainable(architecture: str, num_classes: int, size: int) -> nn.Module:
    """An untrained network, as `build`. Raises ValueError too if it cannot be trained on images of `size` pixels."""
    net, what = build(architecture, num_classes), f"architecture {architecture!r}"
    logits = tried(net, size, what)
    found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if found != (1, num_classes):
        raise ValueError(f"{what} must give logits [1, {num_classes}] for an image, got {found}")
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise ValueError(f"{what} has no weights to train")
    return net.train()


# --- networks for small images ---------------------------------------------------------------------------------------


def _small_resnet(name: str) -> Callable[[int], nn.Module]:
    """torchvision's ResNet with the CIFAR stem: a 3x3 convolution of stride 1 and no max-pool."""

    def make(num_classes: int) -> nn.Module:
        net = vision.torchvision.models.get_model(name, weights=None, num_classes=num_classes)
        net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
        return net

    return make


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, BatchNorm, ReLU and 2x2 average pooling, then global pooling and a linear layer.

    The network of the dataset-condensation literature (Gidaris and Komodakis, CVPR'18), with BatchNorm; pooling stops
    where one pixel is left, and the head pools to `side` pixels, so any image size works.
    """

    def __init__(
        self,
        num_classes: int,
        depth: int = 3,
        width: int = 128,
        side: int = 1,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ):
        super().__init__()
        channels = [3] + [width] * depth
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(channels))
        self.norms = nn.ModuleList(norm(width) for _ in range(depth))
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(2, ceil_mode=True)
        self.last_pool = nn.AdaptiveAvgPool2d(side)
        self.head = nn.Linear(width * side**2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.pool(self.relu(norm(conv(x))))
        return self.head(self.last_pool(x).flatten(1))


class InstanceConvNet(ConvNet):
    """`ConvNet` with instance normalisation, a GroupNorm of one channel a group, and a head that is not pooled.

    G-VBSM's and EDC's ConvNets: the head sees the whole last map of a 32-pixel image; other sizes are pooled to that.
    """

    def __init__(self, num_classes: int, depth: int = 3, width: int = 128):
        super().__init__(num_classes, depth, width, side=32 >> depth, norm=lambda count: nn.GroupNorm(count, count))


class _PooledBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.GroupNorm(outputs, outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.GroupNorm(outputs, outputs)
        self.pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.shortcut = nn.Sequential(conv, nn.AvgPool2d(stride, ceil_mode=True), nn.GroupNorm(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class PooledResNet(nn.Module):
    """ResNet-AP of IDC: ResNet of basic blocks with instance norms, and average pooling where others have strides.

    The stem is a 7x7 convolution pooled by 4 above 128 pixels, 3x3 pooled by 2 above 64, and 3x3 below.
    """

    def __init__(self, num_classes: int, blocks: tuple[int, ...] = (1, 1, 1, 1), size: int = 224):
        super().__init__()
        kernel, self.stem_pool = (7, 4) if size > 128 else (3, 2 if size > 64 else 1)
        self.conv, self.norm = nn.Conv2d(3, 64, kernel, padding=kernel // 2, bias=False), nn.GroupNorm(64, 64)
        layers, inputs = list[nn.Module](), 64
        for stage, count in enumerate(blocks):
            for k in range(count):
                layers.append(_PooledBlock(inputs, 64 << stage, 2 if stage and k == 0 else 1))
                inputs = 64 << stage
        self.blocks = nn.Sequential(*layers)
        self.last_pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.norm(self.conv(x))), self.stem_pool)
        return self.head(self.last_pool(self.blocks(x)).flatten(1))


class _WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.norm1(x))
        z = self.conv2(self.relu2(self.norm2(self.conv1(y))))
        return z + (x if self.shortcut is None else self.shortcut(y))


class WideResNet(nn.Module):
    """Wide residual network (Zagoruyko and Komodakis, BMVC'16): depth 6 n + 4, widths 16, 16 k, 32 k, 64 k."""

    def __init__(self, num_classes: int, depth: int = 16, widen: int = 2):
        super().__init__()
        num_blocks = (depth - 4) // 6
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        blocks = []
        for stage in range(3):
            for k in range(num_blocks):
                inputs = widths[stage] if k == 0 else widths[stage + 1]
                blocks.append(_WideBlock(inputs, widths[stage + 1], 2 if stage and k == 0 else 1))
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.relu = nn.BatchNorm2d(widths[3]), nn.ReLU()
        self.head = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.blocks(self.conv(x))))
        return self.head(x.mean((2, 3)))


def _small_shufflenet(name: str, kernel: int = 3) -> Callable[[int], nn.Module]:
    """torchvision's ShuffleNetV2 without max-pool, with a stem of stride 1: 3x3 (CV-DD, FADRM) or 1x1 (G-VBSM, EDC)."""

    def make(num_classes: int) -> nn.Module:
        net = vision.torchvision.models.get_model(name, weights=None, num_classes=num_classes)
        net.conv1[0] = nn.Conv2d(3, net.conv1[0].out_channels, kernel, padding=kernel // 2, bias=False)
        net.maxpool = nn.Identity()
        return net

    return make


def _small_densenet(num_classes: int) -> nn.Module:
    """torchvision's DenseNet-121 with a stem that is a 3x3 convolution of stride 1 alone: no norm and no pooling."""
    net = vision.torchvision.models.densenet121(num_classes=num_classes)
    net.features.conv0 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.features.conv0.weight)
    for name in ("norm0", "relu0", "pool0"):
        net.features.set_submodule(name, nn.Identity())
    return net


ZOO: dict[str, Callable[[int], nn.Module]] = {
    **{name: _small_resnet(name) for name in ("resnet18", "resnet34", "resnet50", "resnet101")},
    **{f"convnet{depth}": partial(ConvNet, depth=depth) for depth in (1, 2, 3, 4, 5, 6)},
    "convnet3_w32": lambda n: ConvNet(n, 3, 32),
    "convnet3_w64": lambda n: ConvNet(n, 3, 64),
    "convnet3_flat": lambda n: ConvNet(n, 3, side=4),  # RDED's: the head sees the whole last map of 32 pixels
    "convnet1_in": lambda n: InstanceConvNet(n, 1),
    "convnet2_in": lambda n: InstanceConvNet(n, 2),
    "convnet3_in": lambda n: InstanceConvNet(n, 3),
    "convnet2_w32_in": lambda n: InstanceConvNet(n, 2, 32),
    "convnet3_w32_in": lambda n: InstanceConvNet(n, 3, 32),
    "resnet10_ap_in": lambda n: PooledResNet(n),
    "resnet10_ap_in_small": lambda n: PooledResNet(n, size=64),
    "resnet20": lambda n: CifarResNet(n, 20),
    "resnet56": lambda n: CifarResNet(n, 56),
    "wrn16_2": lambda n: WideResNet(n, 16, 2),
    "densenet121": _small_densenet,
    "mobilenet_v2_x0_5": lambda n: MobileNetV2(n, 0.5, is_projected=False),
    "mobilenet_v2_x1_0": lambda n: MobileNetV2(n),
    "shufflenet_v2_x0_5": _small_shufflenet("shufflenet_v2_x0_5"),
    "shufflenet_v2_x0_5_1x1": _small_shufflenet("shufflenet_v2_x0_5", kernel=1),
    "shufflenet_v2_x1_0": _small_shufflenet("shufflenet_v2_x1_0"),
}


_PACKAGES = {"torch", "torchvision", "timm", "fastcondense"}


class _ReshapingViews(TorchFunctionMode):
    """Tensor.reshape in place of Tensor.view, while a network runs."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        is_shape = function is Tensor.view and not kwargs and not isinstance(args[-1], torch.dtype)
        return (Tensor.reshape if is_shape else function)(*args, **(kwargs or {}))

    @staticmethod
    def enter(_net: nn.Module, _args: Any) -> None:
        _ReshapingViews().__enter__()

    @staticmethod
    def leave(_net: nn.Module, _args: Any, _result: Any) -> None:
        _ReshapingViews().__exit__(None, None, None)  # the innermost one


def channels_last(net: nn.Module, device: torch.device | None = None) -> nn.Module:
    """`net` with its weights in the channels_last layout, on `device` if one is given; in place.

    Modules of the user's own may call x.view(N, -1) on its maps, as if they were planes: it copies where it has to.
    """
    anything: Any = net  # torch's annotations of Module.to lack memory_format
    packages = {type(module).__module__.partition(".")[0] for module in net.modules()}
    if not packages <= _PACKAGES and _ReshapingViews.enter not in net._forward_pre_hooks.values():
        net.register_forward_pre_hook(_ReshapingViews.enter)
        net.register_forward_hook(_ReshapingViews.leave, always_call=True)
    return anything.to(device=device, memory_format=torch.channels_last)
