"""Linear probes: a classifier on a frozen backbone, trained here or read from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.real import training_batches
from ..networks import zoo
from ..networks.encoders import feature_size
from ..networks.fit import fit
from ..networks.score import score
from ..rng import Stream
from ..run import Run
from ..teachers.weights import state_dict

_NAMES = ("linear.", "fc.", "classifier.", "head.", "")


class FrozenBackbone(nn.Module):
    """A network whose classifier alone is trained: the rest stays in evaluation mode and has no gradients.

    Takes `net` over; `net` is the network with the trained classifier at any time.
    """

    def __init__(self, net: nn.Module, classifier: str):
        super().__init__()
        self.net, self.classifier = net, classifier
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name.startswith(f"{classifier}."))

    def train(self, mode: bool = True) -> FrozenBackbone:
        """The backbone stays in evaluation mode, so that its running statistics do not move."""
        super().train(mode)
        self.net.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def train_probe(run: Run, net: nn.Module, classifier: str, number: int, checkpoint: Path) -> nn.Module:
    """Fits a new classifier of the data set's classes on the frozen `net`, the teacher `number`; returns `net`.

    Views are squeeze's. The state of the training is kept in `checkpoint` and goes on from there, to the same bits.
    Weights begin normal with deviation 0.01, biases at 0, as MoCo's.
    """
    recipe, what = run.recipe, f"probe of {run.recipe.squeeze.teachers[number]}"
    settings, stream = recipe.squeeze.probe, Stream(recipe.seed, f"squeeze/probe/views/{number}")
    with Stream(recipe.seed, "squeeze/probe/init").torch_generator(number):
        layer = nn.Linear(feature_size(net, classifier), len(run.real.classes))
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    net.set_submodule(classifier, layer)
    run.log.say(f"squeeze: {what}, {settings.epochs} epochs")
    fitted, _ = fit(
        zoo.channels_last(FrozenBackbone(net, classifier), run.device),
        settings,
        lambda epoch: training_batches(
            run.real.train, recipe.dataset, recipe.squeeze, stream, epoch, settings.batch_size, run.device
        ),
        F.cross_entropy,
        lambda probe: score(probe, run.test_images, run.normalize),
        Stream(recipe.seed, f"squeeze/probe/dropout/{number}"),
        checkpoint,
        lambda entry: run.report_epoch(what, entry, settings.epochs),
        lambda epochs: run.log.track(epochs, what),
    )
    assert isinstance(fitted, FrozenBackbone)
    return fitted.net.requires_grad_().cpu()


def read_probe(loaded: Any, path: Path, features: int) -> nn.Linear:
    """The linear layer in what a probe file holds: `linear`, `fc`, `classifier` or `head`, under module. or not.

    Raises ValueError if there is none, if there is anything else, or if it does not take so many features.
    """
    state = {name.removeprefix("module."): value for name, value in state_dict(loaded, path).items()}
    prefix = next((prefix for prefix in _NAMES if state.keys() == {f"{prefix}weight", f"{prefix}bias"}), None)
    if prefix is None:
        raise ValueError(
            f"probe {path} must hold a weight and a bias alone, as module.linear.* or fc.*; it has "
            f"{', '.join(sorted(state)[:5])}{', ...' if len(state) > 5 else ''}"
        )
    weight, bias = state[f"{prefix}weight"], state[f"{prefix}bias"]
    if weight.dim() != 2 or weight.shape[1] != features or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"probe {path} has a weight of shape {tuple(weight.shape)} and a bias of {tuple(bias.shape)}; "
            f"[classes, {features}] and [classes] are needed"
        )
    layer = nn.Linear(features, len(weight))
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer
