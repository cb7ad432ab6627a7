"""Real images that stand for their class as frozen backbones see them: nearest to its mean, or most in its direction.

"nearest": least distance of an image's features to their mean over its class, images as the evaluation transform sees
them (LGM's baseline). "aligned": largest cosine of the mean feature of an image's views and the direction of its slot,
both seen from the mean of all classes: the best real images by what recover.means makes condensed ones for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.real import square_batches, window_batches
from ..files import tree_sha256
from ..loaders.source import Windowed
from ..networks.precision import arithmetic
from ..recover.feature_targets import Backbone, backbone_of
from ..recover.representatives import unread_squares
from ..rng import Stream
from ..run import Run
from ..sets.stored_images import StoredImages
from ..statistics.class_directions import Directions, class_directions
from ..teachers.kept import chosen, read_teachers
from ..tensor_files import read_kept, write_tensors
from ..views.windows import windows
from ..workers.distributed import first_alone

Closeness = Literal["nearest", "aligned"]
_BATCH = 100  # images that go through a backbone together: fixed, because rounding depends on it
_LOOKS = 20  # views of each of a class's
_LOOKED_AT = 15  # images that are most in its direction by a few views


def closest_images(run: Run, kind: str, count: int) -> tuple[StoredImages, Tensor]:
    """The first `count` of every class, by class: uint8 [classes * count, 3, S, S], unread, and int64 labels.

    recover.teachers are the backbones; of several the distances or cosines are averaged. The choice is kept in the
    run's folder. Raises ValueError if a class has fewer images that can be read.
    """
    recipe, teachers = run.recipe, chosen(read_teachers(run), run.recipe.recover.teachers)
    identity = recipe.parts("seed", "dataset", "ipc") | {"kind": kind, "count": count, "images": run.real.about()}
    identity |= {"teachers": [teacher.sha256 for teacher in teachers], "means": recipe.parts("recover")["recover"]}
    path = run.out / "students" / "features" / f"{kind}-{tree_sha256(identity)[:8]}.safetensors"
    with first_alone():
        if not path.exists():
            backbones = [backbone_of(teacher, "fp32") for teacher in teachers]
            wanted = [of.to(run.device) for of in class_directions(run, teachers)]
            with torch.no_grad(), arithmetic("fp32"):
                classes = range(len(run.real.classes))
                found = [_closest(run, cast(Closeness, kind), backbones, wanted, label, count) for label in classes]
            write_tensors(path, {"ids": torch.from_numpy(np.stack(found))}, {})
    num_classes = len(run.real.classes)
    ids = read_kept(path, {"ids": (torch.int64, [num_classes, count])})["ids"].flatten().numpy()
    labels = np.arange(num_classes).repeat(count)
    run.real.train.check_class(ids, labels, path)
    return unread_squares(run, ids), torch.from_numpy(labels)


def _closest(
    run: Run, kind: Closeness, backbones: Sequence[Backbone], wanted: Sequence[Directions], label: int, count: int
) -> np.ndarray:
    """The first `count` training samples of a class, int64 [count]."""
    members = run.real.train.of_class(label)
    whole, ids = _squares(run, backbones, members)
    if len(ids) < count:
        raise ValueError(
            f"class {run.real.classes[label]!r} has {len(ids)} training images that can be read, but {count} are wanted"
        )
    if kind == "nearest":
        gaps = [(features - features.mean(0)).norm(dim=1) for features in whole]
        far = sum(gap / gap.mean() for gap in gaps)
        return ids[torch.as_tensor(far).argsort(stable=True).cpu().numpy()[:count]]

    slots = torch.arange(count, device=run.device)

    def cosines(seen: Sequence[Tensor]) -> Tensor:
        aims = [of.of(torch.full_like(slots, label), slots) for of in wanted]
        triples = zip(seen, wanted, aims, strict=True)
        along = [F.cosine_similarity((z - of.centre)[None], aim[:, None], -1) for z, of, aim in triples]
        return torch.stack(along).mean(0)  # [slots, images]

    few = run.recipe.recover.means.real_views
    rough = [(one + few * more) / (1 + few) for one, more in zip(whole, _views(run, backbones, ids, few), strict=True)]
    by_slot = cosines(rough).argsort(descending=True, stable=True)[:, : max(_LOOKED_AT, count)]
    likely = ids[np.unique(by_slot.cpu().numpy())]
    return likely[one_each(cosines(_views(run, backbones, likely, _LOOKS)).cpu().numpy())]


def one_each(scores: np.ndarray) -> np.ndarray:
    """An image for each slot in turn, the one that scores most of those that are left: [slots, images] -> [slots]."""
    is_left, chosen = np.ones(scores.shape[1], dtype=bool), list[int]()
    for row in scores:
        chosen.append(int(np.where(is_left, row, -np.inf).argmax()))
        is_left[chosen[-1]] = False
    return np.array(chosen, dtype=np.int64)


def _squares(run: Run, backbones: Sequence[Backbone], ids: np.ndarray) -> tuple[list[Tensor], np.ndarray]:
    """Features of each backbone, [n, D], of evaluation squares, and the samples that could be read."""
    seen, read = list[list[Tensor]](), list[Tensor]()
    for pixels, found in square_batches(run.real.train, run.recipe.dataset, run.device, _BATCH, ids=ids):
        images = run.normalize(pixels)
        seen.append([see(images) for see in backbones])
        read.append(found.cpu())
    run.report_skipped(run.real.train)
    if not read:
        return [], ids[:0]
    return [torch.cat(parts) for parts in zip(*seen, strict=True)], torch.cat(read).numpy()


def _views(run: Run, backbones: Sequence[Backbone], ids: np.ndarray, count: int) -> list[Tensor]:
    """Mean features of each backbone, [n, D], of `count` views of samples that can be read, as recover's are."""
    recipe, stream, total = run.recipe, Stream(run.recipe.seed, "baselines/aligned"), list[Tensor]()
    batches = np.split(ids, range(_BATCH, len(ids), _BATCH))
    for number in range(count):

        def draw(ids: np.ndarray, heights: np.ndarray, widths: np.ndarray, number: int = number) -> np.ndarray:
            return windows(stream, recipe.recover, ids, number, heights, widths)

        cut = Windowed(recipe.dataset.image_size, draw)
        made = window_batches(run.real.train, recipe.dataset, batches, cut, run.device)
        parts = [[see(images) for see in backbones] for images, _ in made]
        seen = [torch.cat(of) for of in zip(*parts, strict=True)]
        total = seen if not total else [one + more for one, more in zip(total, seen, strict=True)]
    return [of / count for of in total]
