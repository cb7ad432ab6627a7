"""An architecture as a user would bring it: FD-MobileNet (Qin et al., ICIP'18), by --squeeze.teachers FILE:function."""

from torch import Tensor, nn

_STAGES = [(32, 2), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (256, 1), (256, 1), (256, 1), (512, 1)]


class FDMobileNet(nn.Module):
    """Width 0.5: a stride-2 stem, eleven depthwise-separable pairs, global average pooling, a linear layer."""

    def __init__(self, num_classes: int):
        super().__init__()
        features = nn.Sequential()
        features.add_module("conv_0", nn.Conv2d(3, 16, 3, 2, 1, bias=False))
        features.add_module("norm_0", nn.BatchNorm2d(16))
        features.add_module("relu_0", nn.ReLU())
        inputs = 16
        for k, (outputs, stride) in enumerate(_STAGES):
            features.add_module(f"dw_conv_{k}", nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False))
            features.add_module(f"dw_norm_{k}", nn.BatchNorm2d(inputs))
            features.add_module(f"dw_relu_{k}", nn.ReLU())
            features.add_module(f"pw_conv_{k}", nn.Conv2d(inputs, outputs, 1, bias=False))
            features.add_module(f"pw_norm_{k}", nn.BatchNorm2d(outputs))
            features.add_module(f"pw_relu_{k}", nn.ReLU())
            inputs = outputs
        self.features = features
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def fd_mobilenet(num_classes: int) -> nn.Module:
    """What the command line calls."""
    return FDMobileNet(num_classes)
