"""Labels of replayed views. No label is stored: the teachers give it when a view is seen.

Label contract: a label depends on (seed, epoch, sample), as its view does. In training mode, and in a norm-equalized
ensemble, it depends on the views of its group or batch too. Those are pinned: neighbours in the epoch's order.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .. import vision
from ..data.real import split_batches
from ..kernels.soft_label import soft_label_loss
from ..networks.precision import arithmetic, mixed, network_dtype
from ..recipe.settings import Labels
from ..recipe.train import Train
from ..rng import Stream
from ..teachers.teacher import Teacher
from ..user_functions import is_own, load_function
from ..workers.distributed import all_sum
from .calibration import fitted_temperature, renormalised, temperature_in
from .view_tables import Span, ViewBatch

_PRIOR_TEMPERATURE = 10.0  # of CV-DD's weights


@dataclass(frozen=True)
class Wanted:
    """What a student should answer: the teachers' logits [E, B, classes], or None for the classes alone.

    labels, partners: int64 [B] and share: float32 [B], the classes of a view and the part of it that is `labels`.
    smoothing: share of a label without logits that all classes have alike. temperature: of the epoch, where it is not
    train.temperature. label_classes: those of the largest logits that a label is the softmax of; 0: all.
    """

    logits: Tensor | None
    labels: Tensor
    partners: Tensor
    share: Tensor
    smoothing: float = 0.0
    temperature: float | None = None
    label_classes: int = 0

    def __getitem__(self, rows: slice) -> Wanted:
        logits = None if self.logits is None else self.logits[:, rows]
        return replace(
            self, logits=logits, labels=self.labels[rows], partners=self.partners[rows], share=self.share[rows]
        )


class LabelSource(Protocol):
    """Labels of a batch of views."""

    def __call__(self, batch: ViewBatch) -> Wanted: ...


class TeacherLabels:
    """The teachers' logits, scaled so that their mean is the recipe's ensemble, computed in labels.precision.

    In training mode (labels.batch_norm train, labels.dropout) each labels.batch_norm_size consecutive views are one
    forward; a last group of one view joins the one before. Dropout is drawn from (seed, epoch, the group's position).
    Raises ValueError for a teacher without its unfused network there.
    """

    def __init__(self, teachers: Sequence[Teacher], settings: Labels, seed: int):
        dtype = torch.float32 if settings.is_in_training else network_dtype(settings.precision)
        self.teachers, self.settings = [teacher.cast(dtype) for teacher in teachers], settings
        self.dropout_streams = [Stream(seed, f"labels/dropout/{teacher.name}") for teacher in teachers]
        if settings.is_in_training:
            for teacher in teachers:
                if teacher.unfused is None:
                    raise ValueError(f"teacher {teacher.name} has no unfused network for labels in training mode")
                set_training(teacher.unfused, settings)

    def __call__(self, batch: ViewBatch) -> Wanted:
        logits = self.logits(batch.images, batch.span, batch.whole)
        return Wanted(logits, batch.labels, batch.partners, batch.share)

    @torch.no_grad()
    def logits(self, images: Tensor, span: Span, whole: Span | None = None) -> Tensor:
        """Float32 logits [E, B, classes] of the views of a span, whose mean over the E teachers is their label.

        whole: the batch of all ranks that the span is a part of, if there are several: each calls this with its part.
        """
        with arithmetic(self.settings.precision):
            each = torch.stack([self._logits(number, images, span) for number in range(len(self.teachers))])
        norms = batch_norms(each, span, whole) if self.settings.ensemble == "norm-equalized" else None
        return each if (scales := ensemble_scales(each, self.settings, norms)) is None else each * scales

    def _logits(self, number: int, images: Tensor, span: Span) -> Tensor:
        teacher, settings = self.teachers[number], self.settings
        if not settings.is_in_training or teacher.unfused is None:
            return teacher.logits(images if teacher.dtype is None else images.to(teacher.dtype))
        parts = []
        for group in split_batches(np.arange(len(images)), settings.batch_norm_size):
            first, last = int(group[0]), int(group[-1])
            stream = self.dropout_streams[number]
            drawn = stream.torch_generator(span.epoch, span.begin + first)
            with drawn if settings.dropout else contextlib.nullcontext(), mixed(settings.precision, images.device):
                parts.append(teacher.unfused(teacher.adapted(images[first : last + 1])).float())
        return torch.cat(parts)[:, teacher.outputs]


class OwnLabels:
    """Labels that are a function of the user's: function(views, classes, partners, share), as `ViewBatch` has them.

    Raises ValueError for what are no logits [B, num_classes].
    """

    def __init__(self, reference: str, num_classes: int):
        self.reference, self.num_classes = reference, num_classes
        self.function = load_function(reference, "labels.source")

    @torch.no_grad()
    def __call__(self, batch: ViewBatch) -> Wanted:
        seen = (batch.images, batch.labels, batch.partners, batch.share)
        logits = self.function(*(part.clone() for part in seen))  # what it changes in them stays its own
        shape = len(batch.labels), self.num_classes
        if not isinstance(logits, Tensor) or logits.shape != shape or not logits.is_floating_point():
            found = f"{tuple(logits.shape)} of {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"labels.source {self.reference!r} must give logits {list(shape)}, got {found}")
        if not bool(logits.isfinite().all()):
            raise ValueError(f"labels.source {self.reference!r} gives logits that are not finite")
        if logits.min() >= 0 and torch.allclose(logits.sum(1), logits.new_ones(()), atol=1e-3):
            raise ValueError(f"labels.source {self.reference!r} gives probabilities, and logits are needed: their log")
        return Wanted(logits.float()[None], batch.labels, batch.partners, batch.share)


def label_source(settings: Labels, teachers: Sequence[Teacher], num_classes: int, seed: int) -> LabelSource:
    """The teachers' labels, or those of the user's own function that `settings` names."""
    if is_own(settings.source):
        return OwnLabels(settings.source, num_classes)
    return TeacherLabels(teachers, settings, seed)


def set_training(net: nn.Module, settings: Labels) -> None:
    """Puts BatchNorms, or dropout and stochastic depth, into training mode as the settings say; the rest stays.

    BatchNorms then take the statistics of what they see, and do not keep them.
    """
    dropouts: tuple[type[nn.Module], ...] = (nn.modules.dropout._DropoutNd, *vision.stochastic_depth())
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and settings.batch_norm == "train":
            module.training, module.track_running_stats = True, False
        elif isinstance(module, dropouts) and settings.dropout:
            module.training = True


def ensemble_scales(logits: Tensor, settings: Labels, norms: Tensor | None = None) -> Tensor | None:
    """Factor of each teacher's logits, float32 [E, 1, 1], such that their plain mean is the ensemble; None for ones.

    logits: [E, B, classes]. norm-equalized: z_t / ||z_t|| * mean_s ||z_s||, norms over the training batch and the
    classes (G-VBSM), those of `logits` if none are given; priors: the mean is weighted by
    softmax(prior / 10) (CV-DD).
    """
    scales = None
    if settings.ensemble == "norm-equalized":
        norms = _norms(_squares(logits)) if norms is None else norms
        scales = (norms.mean() / norms).float()[:, None, None]
    if settings.priors:
        weights = _weights(settings.priors, logits.device)
        scales = weights if scales is None else scales * weights
    return scales


def batch_norms(logits: Tensor, span: Span, whole: Span | None) -> Tensor:
    """Norms over a training batch and the classes, float64 [E], of logits [E, B, classes] of the views of a span.

    The batch is the span, or `whole`, whose other parts other ranks have: they all call this, and get the bits of one
    rank, because the squares are brought together before they are added up.
    """
    squares = _squares(logits)
    if whole is not None and whole != span:
        everyone = squares.new_zeros(len(squares), len(whole))
        everyone[:, span.begin - whole.begin : span.end - whole.begin] = squares
        all_sum(everyone)
        squares = everyone
    return _norms(squares)


def _squares(logits: Tensor) -> Tensor:
    return logits.double().square().sum(2)


def _norms(squares: Tensor) -> Tensor:
    return squares.sum(1).sqrt()


@functools.cache
def _weights(priors: tuple[float, ...], device: torch.device) -> Tensor:
    """Weights of the teachers, [E, 1, 1], kept on the device: nothing is copied there in a step."""
    weights = torch.softmax(torch.tensor(priors, dtype=torch.float64) / _PRIOR_TEMPERATURE, 0)
    return (len(weights) * weights).float().to(device)[:, None, None]


def hard_labels(batch: ViewBatch) -> Wanted:
    """The classes themselves."""
    return Wanted(None, batch.labels, batch.partners, batch.share)


def scheduled(source: LabelSource, train: Train) -> LabelSource:
    """`source` as the epochs of training want it: the classes, smoothed, in those of train.hard_share; else soft labels
    of train.label_classes, at the temperature that train.anneal has come to.
    """

    is_other = train.loss != "mse_ce" and bool(train.label_classes or train.anneal[0])

    def label(batch: ViewBatch) -> Wanted:
        if batch.is_hard:
            return replace(hard_labels(batch), smoothing=train.hard_smoothing)
        wanted = source(batch)
        if wanted.logits is None or not is_other:
            return wanted
        return replace(wanted, temperature=temperature_in(train, batch.epoch), label_classes=train.label_classes)

    return label if train.hard_share or is_other else source


def answers(wanted: Wanted, num_classes: int, temperature: float | None) -> Tensor:
    """The labels of B views as float32 [B, classes]: probabilities at the temperature, or at the epoch's own, of hard
    labels the classes' shares; without one, the mean logits. Raises ValueError for logits of hard labels.
    """
    if wanted.logits is not None:
        if temperature is None:
            return wanted.logits.float().mean(0)
        return (_counted(wanted).float().mean(0) / (wanted.temperature or temperature)).softmax(1)
    if temperature is None:
        raise ValueError("hard labels have no logits; ask for probabilities")
    own, other = (nn.functional.one_hot(labels, num_classes) for labels in (wanted.labels, wanted.partners))
    share = wanted.share[:, None]
    return (1 - wanted.smoothing) * (share * own + (1 - share) * other) + wanted.smoothing / num_classes


def _counted(wanted: Wanted) -> Tensor:
    """The logits that a soft label is the softmax of."""
    assert wanted.logits is not None
    return renormalised(wanted.logits, wanted.label_classes) if wanted.label_classes else wanted.logits


def student_loss(logits: Tensor, wanted: Wanted, train: Train) -> Tensor:
    """The recipe's loss, as `soft_label_loss` defines it; cross-entropy where there are hard labels only.

    With ce_labels "own" the cross-entropy beside soft labels is that of the base image's class. With
    student_temperature "fitted" the student's softmax is at its own temperature.
    """
    is_own = wanted.logits is not None and train.ce_labels == "own"
    temperature = wanted.temperature or train.temperature
    if wanted.logits is not None and train.student_temperature == "fitted" and train.loss != "mse_ce":
        label = answers(wanted, logits.shape[1], temperature)
        logits = logits.float() * (temperature / fitted_temperature(logits, label))
    loss = soft_label_loss(
        logits,
        None if wanted.logits is None else _counted(wanted),
        wanted.labels,
        wanted.partners,
        torch.ones_like(wanted.share) if is_own else wanted.share,
        kind="ce" if wanted.logits is None else train.loss,
        temperature=temperature,
        ce_weight=train.ce_weight,
    )
    if not wanted.smoothing:
        return loss
    return (1 - wanted.smoothing) * loss - wanted.smoothing * logits.log_softmax(1).mean()
