"""Real images that stand for their class: herding's choice, medoids, BPS's, DELT's, in a teacher's eyes or in pixels.

The order of a class's images does not depend on how many of them are wanted, so the first n are the choice for IPC n.
It is kept in the run's folder, as far as it was needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..data.real import square_batches
from ..networks.precision import arithmetic
from ..run import Run
from ..sets.stored_images import StoredImages
from ..teachers.cut import penultimate
from ..teachers.teacher import Teacher
from ..tensor_files import read_kept, write_tensors
from ..workers.work import Items, shared
from .balanced import PATTERNS, balanced
from .selection import herding, inner_products, medoids

BaselineRule = Literal["herding", "medoid", "bps"]
RuleName = Literal[BaselineRule, "median"]
RULES: tuple[BaselineRule, ...] = get_args(BaselineRule)
"""Those that baselines can have."""
_BATCH = 100  # images that go through a teacher together: fixed, because rounding depends on it


@dataclass(frozen=True)
class Rule:
    """A rule by which images are chosen."""

    kind: RuleName
    teacher: Teacher | None
    """The one whose classifier's input is compared (its logits, where no single layer makes them); None: pixels, which
    bps and median do not compare."""


def representatives(run: Run, rule: Rule, label: int, count: int) -> np.ndarray:
    """Training samples of a class, the first `count` in the rule's order: int64 [count].

    Images are compared as the evaluation transform sees them. Raises ValueError if fewer can be read.
    """
    folder = _folder(run, rule)
    kept = _kept(run, folder, label)
    if len(kept) < count:
        vectors, logits, ids = _vectors(run, rule, label)
        run.report_skipped(run.real.train)
        if len(ids) < count:
            raise ValueError(
                f"class {run.real.classes[label]!r} has {len(ids)} training images that can be read, but {count} are "
                f"to be chosen by {rule.kind}"
            )
        kept = ids[_choice(rule.kind, vectors, logits, label, count)]
        write_tensors(_path(folder, label), {"ids": torch.from_numpy(kept)}, {"class": run.real.classes[label]})
    return kept[:count]


def shared_representatives(run: Run, rule: Rule, count: int) -> list[np.ndarray]:
    """The `representatives` of every class; the workers that share the run choose those of some classes each."""
    labels, folder = range(len(run.real.classes)), _folder(run, rule)
    work = Items("choices", folder, labels, lambda label: len(_kept(run, folder, label)) >= count)
    if not all(map(work.is_finished, labels)):
        for label, _ in shared(run.log, f"{rule.kind} of real images", work):
            representatives(run, rule, label, count)
    return [representatives(run, rule, label, count) for label in labels]


def representative_images(run: Run, rule: Rule, count: int) -> tuple[StoredImages, Tensor]:
    """The first `count` of every class, by class: uint8 [classes * count, 3, S, S], unread, and int64 labels."""
    ids = np.concatenate([representatives(run, rule, label, count) for label in range(len(run.real.classes))])
    return unread_squares(run, ids), torch.from_numpy(run.real.train.labels[ids])


def read_squares(run: Run, ids: np.ndarray) -> Tensor:
    """The samples' evaluation squares, uint8 [n, 3, S, S] on the run's device.

    Raises ValueError if a file that could be read when it was chosen no longer can.
    """
    split, dataset = run.real.train, run.recipe.dataset
    pixels = [batch for batch, _ in square_batches(split, dataset, run.device, ids=ids)]
    if sum(map(len, pixels)) < len(ids):
        run.report_skipped(split)
        raise ValueError("a training image that was chosen can no longer be read")
    return torch.cat(pixels)


class Squares:
    """Evaluation squares of training images, which are decoded when they are asked for, each time anew."""

    def __init__(self, run: Run):
        self.run = run
        self.shape_of_one: tuple[int, ...] = 3, run.recipe.dataset.image_size, run.recipe.dataset.image_size

    def take(self, _place: int, rows: Tensor) -> Tensor:
        """The squares of samples, int64 [n]. Raises ValueError as `read_squares`."""
        wanted, which = rows.unique(return_inverse=True)
        return read_squares(self.run, wanted.numpy())[which.to(self.run.device)]


def unread_squares(run: Run, ids: np.ndarray) -> StoredImages:
    """The squares of `read_squares`, which need no memory until they are read."""
    return StoredImages(Squares(run), torch.zeros(len(ids), dtype=torch.int32), torch.from_numpy(ids))


def outwards(count: int) -> np.ndarray:
    """Places of a sorted list of that length: the middle one, the next, the one before, the second next, ..."""
    steps = np.arange(2 * count + 1) + 1
    places = -(-count // 2) + np.where(steps % 2, -(steps // 2), steps // 2)
    return places[(places >= 0) & (places < count)]


def _choice(kind: RuleName, vectors: Tensor, logits: Tensor, label: int, count: int) -> np.ndarray:
    """Places of the first `count` vectors, [N, D], in the rule's order; logits: [N, classes], which two rules need."""
    if kind == "median":
        shares = logits.double().softmax(1)[:, label].cpu().numpy()
        return np.argsort(shares, kind="stable")[outwards(len(shares))[:count]]
    if kind == "bps":
        log_shares = logits.double().log_softmax(1)
        entropies = -(log_shares.exp() * log_shares).sum(1)
        return balanced(vectors.double().cpu().numpy(), entropies.cpu().numpy(), count)
    return (herding if kind == "herding" else medoids)(inner_products(vectors), count)


def _vectors(run: Run, rule: Rule, label: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """The vectors by which a class's images are compared, [N, D], the teacher's logits if the rule needs them, and the
    samples that could be read, ascending.
    """
    members, teacher = run.real.train.of_class(label), rule.teacher
    seen: Callable[[Tensor], Tensor] = (lambda pixels: pixels) if teacher is None else _features(run, teacher)
    vectors, logits, read = [], [], []
    with torch.no_grad(), arithmetic("fp32"):
        for pixels, ids in square_batches(run.real.train, run.recipe.dataset, run.device, _BATCH, ids=members):
            vectors.append(seen(pixels).flatten(1))
            if rule.kind in ("bps", "median") and teacher is not None:
                logits.append(teacher.logits(run.normalize(pixels)))
            read.append(ids.cpu().numpy())
    if not read:
        return torch.zeros(0, 1), torch.zeros(0, 1), members[:0]
    return torch.cat(vectors), torch.cat(logits or [torch.zeros(0, 1)]), np.concatenate(read)


def _features(run: Run, teacher: Teacher) -> Callable[[Tensor], Tensor]:
    network, _ = penultimate(teacher)
    return lambda pixels: network(run.normalize(pixels)).float()


def _kept(run: Run, folder: Path, label: int) -> np.ndarray:
    """Samples that are chosen already, int64 [n]."""
    if not (path := _path(folder, label)).exists():
        return np.zeros(0, dtype=np.int64)
    ids = read_kept(path, {"ids": (torch.int64, [-1])})["ids"].numpy()
    run.real.train.check_class(ids, label, path)
    return ids


def _path(folder: Path, label: int) -> Path:
    return folder / f"class-{label:05d}.safetensors"


def _folder(run: Run, rule: Rule) -> Path:
    """The folder where choices are kept, named after all that decides them."""
    teacher = None if rule.teacher is None else [rule.teacher.name, rule.teacher.identity]
    more = {"patterns": PATTERNS} if rule.kind == "bps" else {}
    return run.folder_of("initial", rule=rule.kind, teacher=teacher, **more)
