"""A network's backbone from images without labels: MoCo v2 through the training loop of teachers (SC-DD)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from ..networks import zoo
from ..networks.encoders import classifier_name, feature_size
from ..networks.fit import fit
from ..rng import Stream
from ..run import Run
from ..teachers.teacher import count_outputs
from .moco import MomentumContrast
from .multi_crop import TwoViews


def pretrain(run: Run, net: nn.Module, number: int, architecture: str, checkpoint: Path) -> nn.Module:
    """Trains `net`, the untrained teacher `number`, without labels; returns it with an untrained classifier.

    The state of the training is kept in `checkpoint` and goes on from there, to the same bits. Raises ValueError if the
    architecture has no single linear classifier, cannot take the images, or the loss is not finite.
    """
    settings, seed = run.recipe.squeeze.self_supervision, run.recipe.seed
    views = TwoViews(run.real.train, run.recipe.dataset, settings, seed, f"squeeze/views/{number}", run.device)
    count_outputs(net, run.recipe.dataset.image_size, architecture)
    with Stream(seed, "squeeze/self-supervision").torch_generator(number):
        classifier = classifier_name(architecture)
        untrained = nn.Linear(feature_size(net, classifier), len(run.real.classes))
        learner = MomentumContrast(net, classifier, settings.moco, settings.accumulate)
    what = f"{settings.method} of {architecture}"
    run.log.say(f"squeeze: {what} without labels, {settings.epochs} epochs")

    def report(entry: dict[str, float]) -> None:
        if views.repeated is not None:
            run.report_skipped(views.repeated)
        run.log.event("epoch", what=what, **entry)
        text = f"{what}: epoch {entry['epoch']:.0f} of {settings.epochs}, loss {entry['loss']:.4f}"
        run.log.tell(text)

    trained, _ = fit(
        zoo.channels_last(learner, run.device),
        replace(settings, accumulate=1),  # the learner parts its batches itself
        views.epoch,
        lambda losses, _: losses.mean(),
        lambda _: {},
        Stream(seed, f"squeeze/dropout/{number}"),
        checkpoint,
        report,
        lambda epochs: run.log.track(epochs, what),
    )
    assert isinstance(trained, MomentumContrast)
    kept = trained.query
    kept.set_submodule(classifier, untrained)
    return kept.requires_grad_().cpu()
