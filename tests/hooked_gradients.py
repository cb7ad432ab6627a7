"""Image gradients, logits and moments of a network, by forward hooks, and of its fused form."""

import torch
from torch import nn
from torch.nn import functional as F

from fastcondense.teachers.moments import BatchNormKeeper


def randomize(net):
    """No statistic keeps the value that would hide a mistake."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
        if isinstance(module, nn.BatchNorm2d):
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()


def objective(logits, moments, targets):
    labels = torch.arange(len(logits)) % logits.shape[1]
    distances = [
        (var - running_var).norm() + (mean - running_mean).norm()
        for (mean, var), (running_mean, running_var) in zip(moments, targets, strict=True)
    ]
    return F.cross_entropy(logits, labels) + 0.05 * (10 * distances[0] + sum(distances[1:]))


def hooked_gradient(net, x):
    """Image gradient of the unfused network in its dtype, moments from forward hooks; logits and moments."""
    x = x.to(next(net.parameters()).dtype).requires_grad_()
    inputs, hooks = [], []
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            hook = module.register_forward_hook(lambda module, args, _: inputs.append((module, args[0].clone())))
            hooks.append(hook)
    logits = net(x)
    for hook in hooks:
        hook.remove()
    order = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    inputs.sort(key=lambda pair: order.index(pair[0]))
    moments = [(y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)) for _, y in inputs]
    targets = [(module.running_mean, module.running_var) for module, _ in inputs]
    (gradient,) = torch.autograd.grad(objective(logits, moments, targets), x)
    return gradient.double(), logits.detach(), moments


def fused_gradient(fused, layers, x):
    x = x.clone(memory_format=torch.channels_last).requires_grad_()
    logits = fused(x)
    moments = [layer.moments for layer in layers]
    targets = [(norm.running_mean, norm.running_var) for norm in norms(layers)]
    (gradient,) = torch.autograd.grad(objective(logits, moments, targets), x)
    return gradient.double(), logits.detach(), moments


def norms(layers):
    """The frozen BatchNorms of layers that are BatchNorms alone."""
    return [keeper for layer in layers for keeper, _ in layer.parts]


def relative(made, wanted):
    return float((made.detach() - wanted.detach()).norm() / wanted.detach().norm())


def images(seed, size=32, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def residual_calls(fused):
    """Calls of FrozenBatchNorms with a residual."""
    modules = dict(fused.named_modules())
    return sum(
        node.op == "call_module" and isinstance(modules[node.target], BatchNormKeeper) and len(node.args) == 2
        for node in fused.graph.nodes
    )
