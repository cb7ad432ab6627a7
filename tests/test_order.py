"""The order of a set's images against a brute-force choice in float64."""

import numpy as np
import pytest
import torch
from small import frozen_network

from fastcondense.data.real import Normalization
from fastcondense.recipe.recover import Recover
from fastcondense.recipe.settings import Dataset
from fastcondense.sets.condensed import CondensedSet
from fastcondense.students.order import order_slots
from fastcondense.teachers.teacher import Teacher

CLASSES = [str(k) for k in range(3)]
DATASET = Dataset(name="digits", image_size=13, resize=13, mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.25))
NORMALIZE = Normalization.of(DATASET, torch.device("cpu"))


def teacher(seed, has_classes):
    made = Teacher.of(frozen_network("zoo/convnet3_w32", 3, seed), f"net-{seed}", CLASSES, range(3), DATASET)
    generator = torch.Generator().manual_seed(seed)
    if has_classes:
        for layer in made.layers:
            vectors = made.targets[layer.name]
            made.class_targets[layer.name] = tuple(v + torch.rand(3, len(v), generator=generator) for v in vectors)
    return made


def brute_force(images, label, teachers, nets, settings):
    """Every candidate is put together with the images so far and goes through the networks with them."""
    chosen = []
    while len(chosen) < len(images):
        scores = {}
        for candidate in set(range(len(images))) - set(chosen):
            batch = NORMALIZE(images[[*chosen, candidate]]).double()
            score = 0.0
            for made, net in zip(teachers, nets, strict=True):
                found, modules = {}, dict(net.named_modules())
                handles = [
                    modules[layer.name].register_forward_hook(
                        lambda _, seen, __, name=layer.name, found=found: found.update({name: seen[0]})
                    )
                    for layer in made.layers
                ]
                net(batch)
                for handle in handles:
                    handle.remove()
                for number, layer in enumerate(made.layers):
                    mean, var = (
                        [v[label] for v in made.class_targets[layer.name]]
                        if made.class_targets
                        else made.targets[layer.name]
                    )
                    seen = found[layer.name]
                    parts = (mean - seen.mean((0, 2, 3)), var - seen.var((0, 2, 3), correction=0))
                    norms = [float(part.norm()) for part in parts]
                    weight = settings.first_layer_weight if number == 0 else 1.0
                    score += weight * sum(n**2 if settings.distance == "squared" else n for n in norms)
            scores[candidate] = score
        chosen.append(min(scores, key=scores.get))
    return chosen


@pytest.mark.parametrize(("has_classes", "distance"), [(True, "norm"), (False, "norm"), (True, "squared")])
def test_every_next_image_is_the_best_addition(has_classes, distance):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (3, 5, 3, 13, 13), dtype=torch.uint8, generator=generator)
    teachers = [teacher(0, has_classes), teacher(1, has_classes)]
    nets = [frozen_network("zoo/convnet3_w32", 3, seed).double() for seed in (0, 1)]
    settings = Recover(distance=distance)
    ranks = order_slots(CondensedSet(images, tuple(CLASSES)), teachers, settings, NORMALIZE)
    expected = [brute_force(images[label], label, teachers, nets, settings) for label in range(3)]
    np.testing.assert_array_equal(ranks.numpy(), expected)
    assert any(row != sorted(row) for row in expected)
