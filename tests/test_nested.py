"""Nested recover: pooled statistics against float64, and the promise that a prefix of a set is the smaller set."""

import numpy as np
import pytest
import torch
from small import frozen_network

from fastcondense.data.jobs import Job, jobs
from fastcondense.data.noise import noise
from fastcondense.data.real import Normalization
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Nested, Recover
from fastcondense.recipe.settings import Dataset
from fastcondense.recover.nested import FinishedSlots, Pool, merge
from fastcondense.recover.recover import Recoverer, RecoverStep, Sources
from fastcondense.teachers.teacher import Teacher

CPU = torch.device("cpu")
CLASSES = [str(k) for k in range(6)]
DATASET = Dataset(name="digits", image_size=12, resize=12, mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.25))
NORMALIZE = Normalization.of(DATASET, CPU)


def recipe(ipc, mode="sequential", **recover):
    settings = {"iterations": 8, "lr": 0.1, "match_weight": 0.5, "batch_size": 4, "crop_scale": (1.0, 1.0)} | recover
    return Recipe(ipc=ipc, seed=5, dataset=DATASET, recover=Recover(nested=Nested(mode=mode), **settings))


def teacher():
    made = Teacher.of(frozen_network("zoo/convnet3_w32", 6), "net", CLASSES, range(6), DATASET)
    torch.manual_seed(3)
    for layer in made.layers:  # category targets that differ by class and from the global ones
        made.class_targets[layer.name] = tuple(v + 0.3 * torch.rand(6, len(v)) for v in made.targets[layer.name])
    return made


def recovered(settings, made, finished=None):
    """Images of all jobs, one after another; those of `finished` are taken, not made."""
    images = dict(finished or {})
    everything = jobs(settings, 6)

    def before(job):
        return [(cell, images[cell.index]) for cell in everything if cell.first_slot < job.first_slot]

    unions = FinishedSlots(settings.recover, [made], NORMALIZE, before)
    if settings.recover.nested.mode == "independent":
        unions = None
    make = Recoverer(settings, [made], CPU, Sources(noise(settings, CPU), unions=unions))
    for job in everything:
        if job.index not in images:
            images[job.index] = make(job).images
    return images


def inputs_of_batch_norms(net, layers, x):
    found = {}
    modules = dict(net.named_modules())
    handles = [
        modules[layer.name].register_forward_hook(lambda _, seen, __, name=layer.name: found.update({name: seen[0]}))
        for layer in layers
    ]
    net(x)
    for handle in handles:
        handle.remove()
    return [found[layer.name] for layer in layers]


def test_merged_pools_are_those_of_all_images():
    generator = np.random.default_rng(0)
    parts = [generator.normal(100, 1, (count, 7, 5, 5)) for count in (1, 4, 6)]
    pools = []
    for part in parts:
        x = torch.from_numpy(part)
        moments = [(x.mean(axes), x.var(axes, correction=0)) for axes in ((0, 2, 3), (0, 1, 3))]
        pools.append(Pool.of(len(part), moments))
    everything, found = np.concatenate(parts), merge(pools)
    means, variances = (
        np.concatenate([value(everything, axis=axes) for axes in ((0, 2, 3), (0, 1, 3))]) for value in (np.mean, np.var)
    )
    assert found.count == 11
    np.testing.assert_allclose(found.means.numpy(), means, rtol=1e-14)
    np.testing.assert_allclose(found.variances.numpy(), variances, rtol=1e-12)
    in_turn = merge([merge(pools[:2]), pools[2]])
    np.testing.assert_allclose(in_turn.variances.numpy(), variances, rtol=1e-12)


@pytest.mark.parametrize("kind", ["global", "category"])
def test_loss_and_gradient_are_those_of_the_prefix_and_the_cell_in_one_batch(kind):
    """Float64: finished images, and the cell as often as there are cells in a slot, go through the network together."""
    settings = recipe(3, targets=(kind,), target_weights=(0.7,), batch_size=3)
    made, net = teacher(), frozen_network("zoo/convnet3_w32", 6).double()
    cells = jobs(settings, 6)
    job = cells[5]
    assert job == Job(5, 2, 1, 3, 3)
    pixels = {c.index: torch.randint(0, 256, (3, 3, 12, 12), dtype=torch.uint8) for c in cells[:4]}
    unions = FinishedSlots(settings.recover, [made], NORMALIZE, lambda _: [(c, pixels[c.index]) for c in cells[:4]])
    step = RecoverStep(settings, job, [made], CPU, Sources(noise(settings, CPU), unions=unions))
    step.step += 4  # the union's weight has grown to its end
    images = step.images.clone().requires_grad_()
    losses = step.loss(step.canvas, images, ((0, 1.0),), torch.tensor([[0, 0, 12, 12, 0, 0, 0]], dtype=torch.int32))
    (gradient,) = torch.autograd.grad(losses[2], images)

    before = [pixels[k] for k in ((0, 1, 2, 3) if kind == "global" else (1, 3))]
    truth = images.detach().double().requires_grad_()
    prefix = NORMALIZE(torch.cat(before)).double()
    copies = 2 if kind == "global" else 1
    targets = (
        made.targets if kind == "global" else {k: [v[3:].mean(0) for v in vs] for k, vs in made.class_targets.items()}
    )

    def distance(batch):
        total = 0
        for number, seen in enumerate(inputs_of_batch_norms(net, made.layers, batch)):
            mean, var = targets[made.layers[number].name]
            far = torch.norm(mean - seen.mean((0, 2, 3))) + torch.norm(var - seen.var((0, 2, 3), correction=0))
            total = total + 0.7 * (10 if number == 0 else 1) * far
        return total

    expected = 0.5 * (0.5 * distance(truth) + 0.5 * 3 * distance(torch.cat((prefix, *[truth] * copies))))
    (wanted,) = torch.autograd.grad(expected, truth)
    assert float(losses[2].detach()) == pytest.approx(float(expected.detach()), rel=2e-6)
    assert float((gradient - wanted).norm() / wanted.norm()) < 2e-6


def test_the_first_slots_are_those_of_a_smaller_run_and_a_set_can_be_extended():
    made = teacher()
    small, large = recovered(recipe(2), made), recovered(recipe(4), made)
    assert len(small) == 4 and len(large) == 8
    assert all(torch.equal(small[k], large[k]) for k in small)
    extended = recovered(recipe(4), made, small)
    assert all(torch.equal(extended[k], large[k]) for k in large)
    independent = recovered(recipe(4, "independent"), made)
    assert all(torch.equal(independent[k], large[k]) for k in (0, 1))
    assert not any(torch.equal(independent[k], large[k]) for k in range(2, 8))


def test_prefixes_are_nearer_to_the_targets_than_independent_slots():
    made = teacher()

    def distance(images, num_slots):
        x = NORMALIZE(torch.cat([images[k] for k in range(2 * num_slots)]))
        found, wanted = (
            [v for layer in moments for v in layer] for moments in (made.batch_targets(x), made.matched_targets())
        )
        return float(sum((a - b).norm() for a, b in zip(found, wanted, strict=True)))

    settings = {"iterations": 60, "match_weight": 1.0}
    nested, independent = (recovered(recipe(4, mode, **settings), made) for mode in ("sequential", "independent"))
    assert all(distance(nested, n) < distance(independent, n) for n in (2, 3, 4))


def test_the_weight_of_the_union_grows():
    def weights(slot, **nested):
        settings = Recover(iterations=8, nested=Nested(mode="sequential", **nested))
        own, union = FinishedSlots(settings, [], NORMALIZE, lambda _: []).weights(Job(0, slot, 1, 0, 4))
        assert torch.equal(own, 1 - union)
        return union.tolist()

    assert weights(0) == [0.0] * 8
    assert weights(3) == [0.0, 0.25, *[0.5] * 6]
    assert weights(1, ramp=0.0, weight=0.75) == [0.75] * 8
