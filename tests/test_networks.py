"""Networks of torchvision and timm by name, as students and as teachers: sizes, a step, layers, fused logits."""

import statistics

import pytest
import torch
from torch.nn import functional as F

from fastcondense.networks.fit import make_optimizer
from fastcondense.networks.zoo import build, channels_last
from fastcondense.recipe.settings import Dataset, Optimization
from fastcondense.teachers.fuse import fuse
from fastcondense.teachers.teacher import Teacher
from fastcondense.vision import torchvision

# Parameters with 1000 classes as their authors state them, and numbers of BatchNorm and of convolution layers (for
# G-VBSM's and EDC's teachers those of their repositories).
NETWORKS = {
    "torchvision/resnet18": (11_689_512, 20, 20),
    "torchvision/resnet50": (25_557_032, 53, 53),
    "torchvision/resnet101": (44_549_160, 104, 104),
    "torchvision/mobilenet_v2": (3_504_872, 52, 52),
    "torchvision/efficientnet_b0": (5_288_548, 49, 81),
    "torchvision/shufflenet_v2_x0_5": (1_366_792, 56, 56),
    "torchvision/convnext_tiny": (28_589_128, 0, 22),
    "torchvision/swin_t": (28_288_354, 0, 1),
    "torchvision/alexnet": (61_100_840, 0, 5),
    "torchvision/densenet121": (7_978_856, 121, 120),
    "timm/deit_tiny_patch16_224": (5_717_416, 0, 1),
    "timm/swin_tiny_patch4_window7_224": (28_288_354, 0, 1),
    "timm/convnext_tiny": (28_589_128, 0, 22),
}
SIZES = {"torchvision/alexnet": 64, "timm/deit_tiny_patch16_224": 224}  # the others are tried with 48


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_as_many_as_published(name):
    with torch.device("meta"):
        net = build(name, 1000)
    assert sum(parameter.numel() for parameter in net.parameters()) == NETWORKS[name][0]
    if name.startswith("torchvision"):
        weights = torchvision.models.get_model_weights(name.partition("/")[2])
        assert {entry.meta["num_params"] for entry in weights} == {NETWORKS[name][0]}


COUNTED = ("timm/swin_tiny_patch4_window7_224", "timm/convnext_tiny", "torchvision/densenet121")  # nothing more


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in COUNTED])
def test_each_can_be_a_teacher_and_takes_a_step(name):
    torch.manual_seed(0)
    size = SIZES.get(name, 48)
    net, dataset = channels_last(build(name, 4)), Dataset(image_size=size, resize=size)
    x = torch.randn(3, 3, size, size).contiguous(memory_format=torch.channels_last)

    _, num_norms, num_convolutions = NETWORKS[name]
    teacher = Teacher.of(net, name, "abcd", range(4), dataset, ("bn", "conv"))
    assert len(teacher.layers) == num_norms + num_convolutions
    with torch.no_grad():
        expected = net.eval()(x)
    assert float((teacher.logits(x) - expected).norm() / expected.norm()) < 1e-5
    if name in ("torchvision/alexnet", "torchvision/convnext_tiny"):
        assert fuse(net, ("bn",))[1] == []
    if name == "torchvision/alexnet":
        return  # a teacher of EDC's and FADRM's, no student, and large

    optimizer = make_optimizer(net, Optimization(optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=1e-4))
    loss = F.cross_entropy(net.train()(x), torch.tensor([1, 3, 0]))
    loss.backward()
    optimizer.step()
    assert bool(loss.isfinite()) and all(bool(p.grad.isfinite().all() and p.isfinite().all()) for p in net.parameters())
    assert statistics.fmean(bool(parameter.grad.any()) for parameter in net.parameters()) > 0.9
