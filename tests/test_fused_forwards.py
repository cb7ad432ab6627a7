"""What is fused of each way to write a forward, and that logits and gradients stay those of the unfused network."""

import copy

import pytest
import torch
from hooked_gradients import fused_gradient, hooked_gradient, images, norms, randomize, relative, residual_calls
from torch import nn
from torch.nn import functional as F

from fastcondense.networks.zoo import channels_last
from fastcondense.teachers.fuse import fuse


class Net(nn.Module):
    """Convolution, BatchNorm and whatever `tail` does with it; a float64 network, so that every digit counts."""

    def __init__(self, tail, affine=True):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4, affine=affine), nn.BatchNorm2d(4, affine=affine)
        self.relu, self.relu_in_place, self.relu6 = nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6()
        self.relu5, self.other_relu = nn.ReLU6(), OtherReLU()
        self.relu5.max_val = 5.0
        self.silu, self.hardswish, self.dropout = nn.SiLU(inplace=True), nn.Hardswish(), nn.Dropout()
        self.tail = [tail]
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.tail[0](self, self.conv1(x)).mean((2, 3)))


def iadd(y, x):
    y += x
    return y


def twice_used(net, x):
    y = net.bn1(x)
    return F.relu(y) + y


class OtherReLU(nn.ReLU):
    def forward(self, x):
        return F.relu(x - 1)


def relu_of_half(net, x):
    y = net.bn2(net.conv2(x))
    return F.relu(y + x) + y


# the activation and the number of residuals that are absorbed
TAILS = {
    "relu module": (lambda net, x: net.relu(net.bn1(x)), "relu", 0),
    "relu module in place": (lambda net, x: net.relu_in_place(net.bn1(x)), "relu", 0),
    "F.relu": (lambda net, x: F.relu(net.bn1(x)), "relu", 0),
    "F.relu in place": (lambda net, x: F.relu(net.bn1(x), inplace=True), "relu", 0),
    "torch.relu": (lambda net, x: torch.relu(net.bn1(x)), "relu", 0),
    "torch.relu_": (lambda net, x: torch.relu_(net.bn1(x)), "relu", 0),
    "method": (lambda net, x: net.bn1(x).relu(), "relu", 0),
    "method in place": (lambda net, x: net.bn1(x).relu_(), "relu", 0),
    "relu6 module": (lambda net, x: net.relu6(net.bn1(x)), "relu6", 0),
    "F.relu6": (lambda net, x: F.relu6(net.bn1(x)), "relu6", 0),
    "silu module in place": (lambda net, x: net.silu(net.bn1(x)), "silu", 0),
    "F.silu": (lambda net, x: F.silu(net.bn1(x)), "silu", 0),
    "hardswish module": (lambda net, x: net.hardswish(net.bn1(x)), "hardswish", 0),
    "F.hardswish in place": (lambda net, x: F.hardswish(net.bn1(x), inplace=True), "hardswish", 0),
    "dropout between": (lambda net, x: net.relu(net.dropout(net.bn1(x))), "relu", 0),
    "bn + x": (lambda net, x: F.relu(net.bn2(net.conv2(x)) + x), "relu", 1),
    "x + bn": (lambda net, x: F.relu(x + net.bn2(net.conv2(x))), "relu", 1),
    "torch.add": (lambda net, x: net.relu(torch.add(x, net.bn2(net.conv2(x)))), "relu", 1),
    "bn += x": (lambda net, x: net.relu_in_place(iadd(net.bn2(net.conv2(x)), x)), "relu", 1),
    "bn + bn": (lambda net, x: F.relu(net.bn2(net.conv2(x)) + net.bn1(x)), "relu", 1),
    "bn + x, silu": (lambda net, x: net.silu(net.bn2(net.conv2(x)) + x), "silu", 1),
    "bn + x, relu6": (lambda net, x: net.relu6(net.bn2(net.conv2(x)) + x), "relu6", 1),
    "bn + x, hardswish": (lambda net, x: net.hardswish(net.bn2(net.conv2(x)) + x), "hardswish", 1),
    "bn + x, no activation": (lambda net, x: net.bn2(net.conv2(x)) + x, "none", 1),
    "x + bn, conv": (lambda net, x: net.conv2(x + net.dropout(net.bn2(net.conv2(x)))), "none", 1),
    "sum used twice": (lambda net, x: (lambda s: F.relu(s) + s)(net.bn2(net.conv2(x)) + x), "none", 1),
    "smaller residual": (lambda net, x: F.relu(net.bn2(net.conv2(x)) + x.mean((2, 3), keepdim=True)), "relu", 1),
    "activation before the add": (lambda net, x: net.silu(net.bn2(net.conv2(x))) + x, "silu", 0),
    # what must not be fused
    "input used elsewhere": (lambda net, x: F.relu(net.bn1(x) + x.mean((2, 3), keepdim=True)), "none", 0),
    "no activation": (lambda net, x: net.bn2(net.conv2(net.bn1(x))), "none", 0),
    "another clip": (lambda net, x: net.relu5(net.bn1(x)), "none", 0),
    "another activation": (lambda net, x: F.gelu(net.bn1(x)), "none", 0),
    "subclass of an activation": (lambda net, x: net.other_relu(net.bn1(x)), "none", 0),
    "input added": (lambda net, x: net.bn1(x) + x, "none", 0),
    "add a number": (lambda net, x: F.relu(net.bn1(x) + 0.3), "none", 0),
    "add with alpha": (lambda net, x: F.relu(torch.add(net.bn1(x), x, alpha=-2)), "none", 0),
    "minus": (lambda net, x: F.relu(x - net.bn1(x)), "none", 0),
    "bn added to itself": (lambda net, x: net.relu(_double(net.bn1(x))), "none", 0),
    "bn used twice": (twice_used, "none", 0),
    "bn beside its sum": (relu_of_half, "none", 0),
    "one bn called twice": (lambda net, x: F.relu(net.bn1(net.conv2(F.relu(net.bn1(x))))), "none", 0),
}


def _double(y):
    return y + y


PLAIN = ("relu module", "bn + x", "silu module in place", "no activation")  # without weights, too
FORMS = [(tail, True) for tail in TAILS] + [(tail, False) for tail in PLAIN]


@pytest.mark.parametrize(("tail", "affine"), FORMS)
def test_logits_gradients_and_what_is_fused(tail, affine):
    function, activation, num_residuals = TAILS[tail]
    net = randomize(Net(function, affine)).double()
    fused, layers, reason = fuse(net)
    assert reason is None
    absorbed = [norm.activation for norm in norms(layers) if norm.activation != "none"]
    assert absorbed == ([] if activation == "none" else [activation])
    assert residual_calls(fused) == num_residuals
    x, y = (images(1, 9, 3).double().requires_grad_() for _ in range(2))
    wanted, made = net(x), fused(y)
    torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)
    for logits in (wanted, made):
        F.cross_entropy(logits, torch.arange(3)).backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-11, atol=1e-13)


def test_a_residual_larger_than_the_normalised_map_keeps_the_networks_numbers():
    net = randomize(Net(lambda net, x: F.relu(net.bn1(x.mean((2, 3), keepdim=True)) + x))).double()
    x = images(1, 9, 3).double()
    torch.testing.assert_close(fuse(net)[0](x), net(x))


def changed_between(net, x):
    y = net.bn1(x)
    x.mul_(2)
    return F.relu(y + x)


def test_an_input_changed_in_place_between_norm_and_relu_keeps_the_networks_numbers():
    net = randomize(Net(changed_between)).double()
    x = images(1, 9, 3).double()
    with torch.no_grad():
        torch.testing.assert_close(fuse(net)[0](x), net(x))


def branching(net, x):
    y = F.relu(net.bn1(x))
    return net.bn2(net.conv2(y)) if y.mean() > 0 else y


def test_an_untraceable_network_falls_back_with_a_reason_and_the_same_numbers():
    net = randomize(Net(branching))
    fused, layers, reason = fuse(net)
    assert reason is not None and "control flow" in reason and "\n" not in reason
    assert len(layers) == 2 and all(norm.activation == "none" for norm in norms(layers))
    wanted, logits, moments = hooked_gradient(copy.deepcopy(net).double(), images(2, 9))
    made, made_logits, made_moments = fused_gradient(fused, layers, images(2, 9))
    assert relative(made, wanted) < 1e-5 and relative(made_logits.double(), logits) < 1e-6
    for (mean, var), (wanted_mean, wanted_var) in zip(made_moments, moments, strict=True):
        assert relative(mean, wanted_mean) < 1e-5 and relative(var, wanted_var) < 1e-5


def test_a_batch_norm_without_running_statistics_is_refused_by_name():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(ValueError, match="BatchNorm 1 has no running statistics"):
        fuse(net)


def test_sync_batch_norms_count_too():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4), nn.ReLU())
    _, layers, _ = fuse(net)
    assert len(layers) == 1 and norms(layers)[0].activation == "relu"


class Viewed(nn.Module):
    """A network that flattens a map of 4 x 4 by x.view, as those of many repositories do; channel order matters."""

    def __init__(self, is_traceable):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6 * 16, 5)
        self.is_traceable = is_traceable

    def forward(self, x):
        x = F.avg_pool2d(F.relu(self.norm(self.conv(x))), 2)
        if not self.is_traceable and x.sum() > 1e9:
            raise ValueError
        x = x + 0 * x.detach().view(torch.int32).view(torch.float32)  # another type, not another shape
        return self.head(x.view(x.size(0), -1))


@pytest.mark.parametrize("is_traceable", [True, False])
def test_a_view_of_a_map_that_is_larger_than_a_pixel_flattens_it_as_planes(is_traceable):
    net = randomize(Viewed(is_traceable))
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = net(x)
        fused, layers, reason = fuse(net)
        assert (reason is None) == is_traceable and len(layers) == 1
        torch.testing.assert_close(fused(x.contiguous(memory_format=torch.channels_last)), wanted)


def test_such_a_network_is_trained_in_channels_last_too():
    net, x = Viewed(True), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 3])
    F.cross_entropy(net(x), labels).backward()
    wanted = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    ours = channels_last(copy.deepcopy(net))
    F.cross_entropy(channels_last(ours)(x.contiguous(memory_format=torch.channels_last)), labels).backward()
    for parameter, gradient in zip(ours.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    assert len(ours._forward_hooks) == 1 and not channels_last(nn.Conv2d(3, 4, 1))._forward_hooks
    with pytest.raises(RuntimeError):  # a bad shape is still an error, and leaves nothing behind
        ours(torch.zeros(1, 3, 6, 6))
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).view(2, -1)
