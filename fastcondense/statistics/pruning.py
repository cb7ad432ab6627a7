"""Pruned statistics: only the layers that give most of the matching loss's image gradient for the least cost.

A layer's gradient share is the norm of what its distance alone adds to the images' gradient, over the sum of these
norms, averaged over a few batches. The batches are jobs of the recipe, spread evenly; their images are real training
images mixed with normal noise, from noise alone to none, which is what recover passes through from a start in noise to
images that look real. The variance of the pixels stays what it was: x = sqrt(1 - a) real + sqrt(a) noise.

A layer's cost is counted, not timed, so that the choice is the same on every machine: the bytes that its moments move
for an image beyond the network's own. Layers that share a map pay for it once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from ..data.jobs import jobs
from ..data.noise import noise
from ..devices import stopwatch
from ..files import tree_sha256, write_json
from ..networks.precision import arithmetic
from ..records import read_checked
from ..run import Run
from ..teachers.kept import teacher_path
from ..teachers.moments import BatchNormKeeper, ConvolutionTap, Keeper
from ..teachers.teacher import Teacher
from .matching import Matching, layer_weights
from .targets import class_images, wanted_moments

NOISE_SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Share of noise in the variance of the images, for each batch that is looked at."""
TAP_PASSES, NORM_PASSES = 4, 1
"""Reads and writes of a map for its moments: a tap reads it, and its backward reads it and the gradient and writes the
sum; a BatchNorm has the map at hand forward, and its backward reads it."""

Map = tuple[Keeper, bool]
"""A map that moments are taken of: a keeper, and whether it is what the keeper writes."""


class PrunedLayer(TypedDict):
    """A layer of a teacher, and whether it is matched."""

    name: str
    is_matched: bool


class PrunedLayers(TypedDict):
    """The file of a teacher's choice."""

    layers: list[PrunedLayer]


def prune(run: Run, teachers: Sequence[Teacher]) -> None:
    """Restricts the teachers, which have their targets, to the layers that give recover.gradient_share of the image
    gradient. The choice is kept beside a teacher's targets; 1 changes nothing."""
    if run.recipe.recover.gradient_share == 1:
        return
    for teacher in teachers:
        if not teacher.layers:
            continue
        path = _path(run, teacher)
        if not path.exists():
            _choose(run, teacher, path)
        entries = read_checked(path, PrunedLayers)["layers"]
        restrict(teacher, [entry["name"] for entry in entries if entry["is_matched"]])


def _choose(run: Run, teacher: Teacher, path: Path) -> None:
    """Measures the layers of the teacher and writes the choice."""
    with stopwatch(run.device) as watch, arithmetic("fp32"):
        shares = gradient_shares(run, teacher)
        maps, costs = map_costs(teacher, run.recipe.dataset.image_size)
        kept = choose(shares, maps, costs, run.recipe.recover.gradient_share)
    layers = [
        {"name": layer.name, "is_matched": bool(is_kept), "gradient_share": float(share), "bytes": float(own @ costs)}
        for layer, is_kept, share, own in zip(teacher.layers, kept, shares, maps, strict=True)
    ]
    share, cost = float(shares[kept].sum()), float(costs[maps[kept].any(0)].sum() / costs.sum())
    write_json(path, {"teacher": teacher.sha256, "gradient_share": share, "cost_share": cost, "layers": layers})
    run.log.say(
        f"teacher {teacher.name}: {int(kept.sum())} of {len(kept)} layers are matched, for {100 * share:.1f} % of the "
        f"image gradient and {100 * cost:.1f} % of the bytes that all of them move"
    )
    run.log.event("pruning", teacher=teacher.name, seconds=watch.seconds)


def _path(run: Run, teacher: Teacher) -> Path:
    """The file of the choice, beside the teacher's weights, named after all that decides it."""
    identity = run.identity("squeeze") | {
        "teacher": teacher.identity,
        "recover": run.recipe.parts("recover")["recover"],
    }
    return teacher_path(run.out, teacher.name).with_name(f"pruning-{tree_sha256(identity)[:8]}.json")


def gradient_shares(run: Run, teacher: Teacher) -> np.ndarray:
    """The share of each of the teacher's layers in the image gradient of the recipe's matching loss, float64 [layers]:
    see the head of this file. The running mean of the moments is left out."""
    recover, everything = run.recipe.recover, jobs(run.recipe, len(run.real.classes))
    real_of, noise_of = class_images(run, "recover/pruning", 1), noise(run.recipe, run.device)
    weights = layer_weights(len(teacher.layers), run.device)

    shares = np.zeros(len(teacher.layers))
    for k, noise_share in enumerate(NOISE_SHARES):
        job = everything[k * len(everything) // len(NOISE_SHARES)]
        pairs = zip(recover.target_weights, recover.targets, strict=True)
        sets = [(weight, wanted_moments(teacher, kind, job)) for weight, kind in pairs]
        real = real_of(job)
        images = math.sqrt(1 - noise_share) * real + math.sqrt(noise_share) * noise_of(job)[: len(real)]
        matching = Matching(sets, weights)
        norms = gradient_norms(teacher, matching, images)
        if not 0 < norms.sum() < np.inf:
            raise ValueError(f"teacher {teacher.name}: the image gradient of the matching loss is {norms.sum()}")
        shares += norms / norms.sum() / len(NOISE_SHARES)
    return shares


def gradient_norms(teacher: Teacher, matching: Matching, images: Tensor) -> np.ndarray:
    """The norm of the image gradient that the moments of each layer pass on, float64 [layers]."""
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    _, moments = teacher(images)
    leaves = [tuple(vector.detach().requires_grad_() for vector in layer) for layer in moments]  # layers may share some
    matching(leaves).backward()
    norms = []
    for layer, own in zip(moments, leaves, strict=True):
        (gradient,) = torch.autograd.grad(layer, images, [leaf.grad for leaf in own], retain_graph=True)
        norms.append(float(gradient.double().norm()))
    return np.array(norms)


def map_costs(teacher: Teacher, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Maps that each layer's moments are taken of, bool [layers, maps], and the bytes that each costs, [maps]."""
    parts = [[(keeper, what == "output") for keeper, what in layer.parts] for layer in teacher.layers]
    maps: dict[Map, int] = {key: k for k, key in enumerate(dict.fromkeys(key for own in parts for key in own))}
    costs = np.zeros(len(maps))

    def count(keeper: Keeper, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for is_output, feature in ((False, inputs[0]), (True, output)):
            if (keeper, is_output) in maps:
                passes = TAP_PASSES if isinstance(keeper, ConvolutionTap) else NORM_PASSES
                costs[maps[keeper, is_output]] = passes * feature.numel() * feature.element_size()

    handles = [keeper.register_forward_hook(count) for keeper in teacher.keepers]
    black = torch.zeros(1, 3, image_size, image_size, device=teacher.outputs.device)
    teacher.batch_targets(black.contiguous(memory_format=torch.channels_last))
    for handle in handles:
        handle.remove()
    return np.array([[key in own for key in maps] for own in parts]), costs


def choose(shares: np.ndarray, maps: np.ndarray, costs: np.ndarray, least: float) -> np.ndarray:
    """The cheapest layers whose shares add up to at least `least` of the sum, exactly: bool [layers].

    shares: [layers]; maps: bool [layers, maps]; costs: [maps]. The first layer is always among them, because
    its weight of 10 is meant for it. An integer programme: layers x and maps y in {0, 1},
    minimise costs y with y_m >= x_l where layer l needs map m.
    """
    from scipy.optimize import LinearConstraint, milp  # a part of scipy that few runs need

    num_layers, num_maps = maps.shape
    layer, needed = maps.nonzero()
    pairs = np.zeros((len(layer), num_layers + num_maps))
    pairs[np.arange(len(layer)), layer], pairs[np.arange(len(layer)), num_layers + needed] = -1, 1
    enough = np.concatenate([shares / shares.sum(), np.zeros(num_maps)])
    first = np.zeros(num_layers + num_maps)
    first[0] = 1
    result = milp(
        np.concatenate([np.zeros(num_layers), costs / costs.sum()]),
        integrality=np.ones(num_layers + num_maps),
        bounds=(0, 1),
        constraints=[LinearConstraint(pairs, lb=0), LinearConstraint(enough, lb=least), LinearConstraint(first, lb=1)],
        options={"mip_rel_gap": 0},
    )
    return np.round(result.x[:num_layers]).astype(bool)


def restrict(teacher: Teacher, names: Collection[str]) -> None:
    """Leaves the teacher the layers `names` alone, in place, and switches off what takes moments for no other layer.

    The moments of BatchNorms' inputs are still taken, which costs nothing forward, but have no gradient.
    """
    teacher.layers = [layer for layer in teacher.layers if layer.name in names]
    teacher.class_targets = {name: vectors for name, vectors in teacher.class_targets.items() if name in names}
    kept = {part for layer in teacher.layers for part in layer.parts}
    for keeper in teacher.keepers:
        if isinstance(keeper, BatchNormKeeper):
            keeper.keeps_output = (keeper, "output") in kept
        elif isinstance(keeper, ConvolutionTap):
            keeper.has_channels = (keeper, "input") in kept
            keeper.patch_size = keeper.patch_size if (keeper, "patches") in kept else None
