"""Bytes that a run leaves on disk, by part, counted from the shapes of what is written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..labels.label_rows import array_shapes
from ..labels.views import full_batches, pooled_batches
from ..networks import zoo
from ..networks.encoders import classifier_name, feature_size
from ..recipe.recipe import Recipe
from ..statistics.class_files import MOST_FILES
from ..students.costs import views_an_epoch
from ..students.frozen import REAL_VIEWS
from ..teachers.teacher import Teacher
from .extent import Extent
from .work import crops_a_class

_HEADER = 1500  # of a safetensors file: names, shapes and metadata


def weight_bytes(architecture: str, num_classes: int) -> int:
    """Bytes of a network's state dict."""
    state = zoo.build(architecture, num_classes).state_dict()
    return sum(tensor.nbytes for tensor in state.values())


def _feature_size(architecture: str) -> int:
    """Length of the vectors that a network's classifier takes."""
    return feature_size(zoo.build(architecture, 2), classifier_name(architecture))


def disk_bytes(recipe: Recipe, size: Extent, matched: Sequence[Teacher]) -> dict[str, int]:
    """Images; teachers and their targets; students and features of real images for frozen ones; rankings; labels.

    matched: the teachers that recover asks, whose layers' vectors are counted. The weights of students in training are
    there twice to four times while it lasts: `checkpoint`. Losses and snapshots in shards are left out: they are small
    beside any teacher.
    """
    recover, side = recipe.recover, recipe.dataset.image_size
    student = weight_bytes(recipe.train.student, size.num_classes)
    features = 0
    if recipe.train.frozen:
        length = _feature_size(recipe.train.student)
        student, real = 4 * (length + 1) * size.num_classes, REAL_VIEWS * ("full" in recipe.evaluate.baselines)
        features = (4 * length + 8) * (size.num_test + real * size.num_train) + 2 * _HEADER
    found = {
        "images": size.num_classes * recipe.ipc * 3 * side**2,
        "teachers": sum(weight_bytes(name, size.num_classes) + _HEADER for name in recipe.squeeze.teachers),
        "targets": _target_bytes(recipe, size.num_classes, matched),
        "rankings": 0,
        "features": features,
        "labels": _label_bytes(recipe, size.num_classes),
        "students": (1 + len(recipe.evaluate.baselines)) * recipe.train.seeds * (student + _HEADER),
        "checkpoint": student * (1 + (1 if recipe.train.optimizer == "sgd" else 2) + (recipe.train.ema > 0)),
    }
    if recover.initial.kind == "mosaic" and recover.objective != "gradients":
        found["rankings"] = size.num_classes * (20 * crops_a_class(recipe, size)[1] + _HEADER)
    return found


def _target_bytes(recipe: Recipe, num_classes: int, matched: Sequence[Teacher]) -> int:
    """Statistics of the data set that BatchNorms do not hold, and those of each class; means of features."""
    recover = recipe.recover
    if recover.objective == "means" and recover.means.target != "gradient":
        sizes = [_feature_size(teacher.name) for teacher in matched]
        vectors = 2 * num_classes + (num_classes * recipe.ipc if recipe.ipc > 1 else 0)
        return sum(4 * (vectors * size + size**2 * (recover.means.target == "ridge")) + _HEADER for size in sizes)
    if recover.objective != "statistics":
        return 0
    total = 0
    for teacher in matched:
        for layer in teacher.layers:
            length = sum(len(vector) for vector in teacher.targets[layer.name])
            total += 4 * length * (not layer.is_batch_norm) + 4 * length * num_classes * ("category" in recover.targets)
            if "difficulty" in recover.targets:
                total += 8 * length * recipe.ipc * min(num_classes, MOST_FILES)
    return total


def _label_bytes(recipe: Recipe, num_classes: int) -> int:
    if recipe.labels.source != "stored":
        return 0
    views = views_an_epoch(recipe, num_classes)
    if recipe.labels.pool < 1:  # of all full batches that there are
        num_full = full_batches(views, recipe.train.batch_size)
        pooled = pooled_batches(recipe.labels.pool, recipe.train.epochs, num_full)
        rows = pooled * min(recipe.train.batch_size, views)
    else:
        rows = (recipe.train.epochs - len(recipe.train.hard_epochs)) * views
    shapes = array_shapes(rows, num_classes, recipe.labels.top_k).values()
    return recipe.train.seeds * sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in shapes)
