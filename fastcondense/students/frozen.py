"""Students that are frozen teachers with a new linear layer: linear probes, on features of views that are made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.real import shares, split_batches, training_batches
from ..files import slug, tree_sha256
from ..kernels.crop import crop
from ..networks.precision import arithmetic
from ..networks.train_step import Batch
from ..networks.zoo import black
from ..recover.feature_targets import backbone_of
from ..rng import Stream
from ..run import Run
from ..sets.stored_images import Images, read
from ..teachers.kept import chosen, read_teachers
from ..tensor_files import read_kept, write_tensors
from ..views.windows import windows
from ..workers.distributed import first_alone, rank, world_size
from .task import Task

REAL_VIEWS = 2
"""Views of each of all real images: fifty would be fifty passes over them."""
_BATCH = 128  # views that go through the network together: fixed, because rounding depends on it


class FeatureTable(NamedTuple):
    """Features of views, float32 [N, D], and their classes, int64 [N], on one device."""

    vectors: Tensor
    labels: Tensor

    @property
    def device(self) -> torch.device:
        return self.vectors.device

    def batches(self, batch_size: int, number: int = 0, count: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """All of them in order; of `count` ranks, each has a part."""
        parts = (tensor.tensor_split(count)[number].split(batch_size) for tensor in self)
        return zip(*parts, strict=True)


class FrozenStudent:
    """The teacher of a run that train.student names, as a backbone. Features of real images are kept in its folder."""

    def __init__(self, run: Run):
        (self.teacher,) = chosen(read_teachers(run), [run.recipe.train.student])
        self.run, self.precision = run, run.recipe.train.precision
        self.see = backbone_of(self.teacher, self.precision)

    @staticmethod
    def of(run: Run) -> FrozenStudent:
        """The one of a run, which it keeps."""
        name = f"frozen student {run.recipe.sha256('squeeze', 'labels', 'train')}"
        if name not in run.kept:
            run.kept[name] = FrozenStudent(run)
        return run.kept[name]

    def layer(self) -> nn.Linear:
        """An untrained layer: normal weights of deviation 0.01, biases of 0."""
        made = nn.Linear(self.width, len(self.run.real.classes))
        nn.init.normal_(made.weight, std=0.01)
        nn.init.zeros_(made.bias)
        return made

    @cached_property
    def width(self) -> int:
        """Length of its features."""
        with torch.no_grad(), arithmetic(self.precision):
            return self.see(black(self.run.recipe.dataset.image_size, self.run.device)).shape[1]

    @cached_property
    def test(self) -> FeatureTable:
        """Those of the test images as the evaluation transform sees them."""
        images = self.run.test_images
        return self._kept("test", lambda: ((self.run.normalize(p), y) for p, y in images.batches(_BATCH)))

    @cached_property
    def real(self) -> FeatureTable:
        """Those of views of all training images."""
        recipe, split = self.run.recipe, self.run.real.train
        what = split, recipe.dataset, recipe.labels, Stream(recipe.seed, "students/frozen/real")

        def views() -> Iterator[tuple[Tensor, Tensor]]:
            for number in range(REAL_VIEWS):
                yield from training_batches(*what, number, _BATCH, self.run.device)
            self.run.report_skipped(split)

        return self._kept("real", views)

    def views(self, pixels: Images, labels: Tensor, seed: int) -> FeatureTable:
        """Those of train.frozen_views views of each image, uint8 [N, 3, S, S]; int64 labels [N]."""
        recipe, normalize = self.run.recipe, self.run.normalize
        stream, size, ids = Stream(seed, "students/frozen"), pixels.shape[-1], np.arange(len(pixels))

        def views() -> Iterator[tuple[Tensor, Tensor]]:
            for number in range(recipe.train.frozen_views):
                table = torch.from_numpy(windows(stream, recipe.labels, ids, number, size, size))
                for here in (slice(begin, begin + _BATCH) for begin in range(0, len(ids), _BATCH)):
                    shown = read(pixels[here]).to(self.run.device)
                    yield crop(shown, table[here], size, gain=normalize.gain, offset=normalize.offset), labels[here]

        return self._seen(views())

    def task(self, features: FeatureTable, seed: int, *, is_full: bool = False) -> Task:
        """What the layer of a seed is trained on; is_full: for evaluate.full_epochs, if there are such."""
        recipe, stream = self.run.recipe, Stream(seed, "students/frozen/order")
        epochs = (is_full and recipe.evaluate.full_epochs) or recipe.train.epochs

        def batches(epoch: int) -> Iterator[Batch]:
            whole = split_batches(stream.permutation(len(features.labels), epoch), recipe.train.batch_size)
            for ids, all_of_them in zip(shares(whole, rank(), world_size()), whole, strict=True):
                rows = torch.from_numpy(ids).to(features.device)
                yield Batch(features.vectors[rows], features.labels[rows], len(all_of_them))

        return Task(replace(recipe.train, epochs=epochs), batches, lambda batch: batch, F.cross_entropy)

    def _seen(self, views: Iterator[tuple[Tensor, Tensor]]) -> FeatureTable:
        vectors, labels = [], []
        with torch.no_grad(), arithmetic(self.precision):
            for images, known in views:
                vectors.append(self.see(images))
                labels.append(known.to(self.run.device))
        return FeatureTable(torch.cat(vectors), torch.cat(labels))

    def _kept(self, what: str, views: Callable[[], Iterator[tuple[Tensor, Tensor]]]) -> FeatureTable:
        """Those of what `views` gives, from the file that keeps them if it is there."""
        run, recipe = self.run, self.run.recipe
        identity = recipe.parts("seed", "dataset", "labels") | {"teacher": self.teacher.sha256, "of": what}
        identity |= {"precision": self.precision, "classes": list(run.real.classes), "images": run.real.about()}
        name = f"{slug(self.teacher.name)}-{what}-{tree_sha256(identity)[:8]}.safetensors"
        path = run.out / "students" / "features" / name
        with first_alone():
            if not path.exists():
                vectors, labels = self._seen(views())
                write_tensors(path, {"vectors": vectors, "labels": labels}, {})
        found = read_kept(path, {"vectors": (torch.float32, [-1, self.width]), "labels": (torch.int64, [-1])})
        vectors, labels = found["vectors"], found["labels"]
        if not len(vectors) == len(labels) > 0 or labels.min() < 0 or labels.max() >= len(run.real.classes):
            raise ValueError(
                f"{path} is not what a run keeps there; remove it: its labels are not those of its vectors"
            )
        return FeatureTable(vectors.to(run.device), labels.to(run.device))
