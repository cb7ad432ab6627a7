"""MobileNetV2 for small images, as the papers' published codes have it."""

from __future__ import annotations

from torch import Tensor, nn


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, is_projected: bool):
        super().__init__()
        middle = inputs * expansion
        layers: list[nn.Module] = []
        for a, b, kernel, step, groups in ((inputs, middle, 1, 1, 1), (middle, middle, 3, stride, middle)):
            layers += [nn.Conv2d(a, b, kernel, step, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(b)]
            layers.append(nn.ReLU())
        self.conv = nn.Sequential(*layers, nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.is_residual = stride == 1 and (inputs == outputs or is_projected)
        self.shortcut: nn.Module = nn.Identity()
        if self.is_residual and inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.shortcut(x) if self.is_residual else y


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al., CVPR'18) for small images: ReLU, and stride 1 in the stage of 24 channels.

    The first block expands too, by 1. is_projected: blocks of stride 1 that change the number of channels have a
    convolution as a shortcut, and the stem has stride 1 (CV-DD, FADRM); otherwise stride 2 (G-VBSM, EDC). Modules have
    the names of G-VBSM's and EDC's published checkpoints and statistics.
    """

    def __init__(self, num_classes: int, width: float = 1.0, is_projected: bool = True):
        super().__init__()
        inputs = int(32 * width)
        self.conv1 = self._convolution(3, inputs, 3, 1 if is_projected else 2)
        stages = []
        for expansion, channels, count, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 1),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            outputs, blocks = int(channels * width), []
            for step in [stride, *[1] * (count - 1)]:
                blocks.append(_InvertedResidual(inputs, outputs, step, expansion, is_projected))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv2 = self._convolution(inputs, 1280, 1, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.conv2(self.blocks(self.conv1(x)))).flatten(1))
