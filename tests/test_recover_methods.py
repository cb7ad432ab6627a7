"""What single methods add to recover, each against a float64 transcription of the specification's loop."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from small import frozen_network
from torch import nn
from torch.nn import functional as F

from fastcondense.data.jobs import jobs
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Committee, Recover
from fastcondense.recipe.settings import Dataset
from fastcondense.recover import by_statistics
from fastcondense.recover.by_statistics import ByStatistics, RecoverStep
from fastcondense.recover.recording import SnapshotRecorder
from fastcondense.recover.schedule import live_layers, stages, turns, window_table
from fastcondense.teachers.teacher import Teacher

CPU = torch.device("cpu")
CLASSES = [str(k) for k in range(6)]
DATASET = Dataset(name="digits", image_size=12, resize=12, mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.25))
MEAN, STD = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (DATASET.mean, DATASET.std))


def recipe(ipc=2, **recover):
    settings = {"iterations": 6, "lr": 0.1, "match_weight": 0.05, "batch_size": 6, "roll": (-2, 2)} | recover
    return Recipe(ipc=ipc, seed=5, dataset=DATASET, recover=Recover(**settings))


def network(seed):
    return frozen_network("zoo/convnet3_w32", 6, seed)


def teacher(seed, statistics=("bn",)):
    made = Teacher.of(network(seed), f"net-{seed}", CLASSES, range(6), DATASET, statistics, 4)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        _, moments = made(torch.randn(8, 3, 12, 12, generator=generator))
    for layer, vectors in zip(made.layers, moments, strict=True):
        made.targets.setdefault(layer.name, vectors)
    return made


def distances(net, x, layers, averages=None, decay=0.0, live=None):
    """Logits and sum of norms over BatchNorms' inputs (running statistics) and convolutions' (given targets)."""
    found, chosen = {}, dict(net.named_modules())
    handles = [
        chosen[name].register_forward_hook(lambda _, inputs, __, name=name: found.update({name: inputs[0]}))
        for name, _ in layers
    ]
    logits = net(x)
    for handle in handles:
        handle.remove()
    total = 0
    for number, (name, wanted) in enumerate(layers):
        if live is not None and not live[number]:
            continue
        seen = found[name]
        for part, value in enumerate((seen.mean((0, 2, 3)), seen.var((0, 2, 3), correction=0))):
            if averages is not None:
                old = averages.get((name, part))
                kept = value.detach() if old is None else decay * old + (1 - decay) * value.detach()
                averages[name, part] = kept
                value = kept + value - value.detach()
            total = total + (10 if number == 0 else 1) * torch.norm(wanted[part].double() - value)
    return logits, total


def layers_of(made):
    return [(layer.name, made.targets[layer.name]) for layer in made.layers]


def view(images, row, side):
    top, left, height, width, flip, roll_y, roll_x = row.tolist()
    seen = F.interpolate(images[:, :, top : top + height, left : left + width], (side, side), mode="bilinear")
    return torch.roll(seen.flip(3) if flip else seen, (roll_y, roll_x), (2, 3))


def transcribed(settings, job, nets, layers, order, initial, averages=None, live=None, anchors=None):
    """The loop of the specification: crop, teachers of the turn, Adam, clip; stages begin with a new Adam."""
    recover, table = settings.recover, window_table(settings, job)
    images, average, losses, t = initial.double(), None, [], 0
    for stage, (side, count) in enumerate(stages(settings)):
        real = initial if not stage or anchors is None else anchors[stage]
        fitted = F.interpolate(real.double(), (side, side), mode="bilinear")
        if stage:
            images = F.interpolate(images, (side, side), mode="bilinear")
            images = recover.residual * images + (1 - recover.residual) * fitted
        else:
            images = fitted
        images = images.clone().requires_grad_()
        average = images.detach().clone()
        optimizer = torch.optim.Adam([images], lr=recover.lr, betas=recover.betas, eps=1e-8)
        for _ in range(count):
            turn = order[t % len(order)]
            optimizer.param_groups[0]["lr"] = 0.5 * recover.lr * (1 + math.cos(math.pi * t / recover.iterations))
            seen = view(images, table[t, 0], side)
            total = entropy = matching = 0
            for which, weight in turn:
                mask = None if live is None else live[which][t]
                kept = None if averages is None else averages[which]
                logits, distance = distances(nets[which], seen, layers[which], kept, recover.statistics_ema, mask)
                entropy = entropy + weight * F.cross_entropy(logits, job.classes())
                matching = matching + weight * recover.match_weight * distance
                if recover.flatness_weight:
                    with torch.no_grad():
                        old = nets[which](view(average, table[t, 0], side))
                    p, q = (z / 4 for z in (old, logits))
                    divergence = (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).mean()
                    total = total + weight * recover.flatness_weight * divergence
            total = total + entropy + matching
            optimizer.zero_grad()
            total.backward()
            average = 0.99 * average + 0.01 * images.detach()
            optimizer.step()
            with torch.no_grad():
                images.copy_(torch.maximum(torch.minimum(images, (1 - MEAN) / STD), -MEAN / STD))
            losses.append([float(v.detach()) for v in (total, entropy, matching)])
            t += 1
        images = images.detach()
    return images, np.array(losses)


def same(settings, job, made, order, images, losses, initial=None, anchors_of=None):
    recoverer = ByStatistics(settings, made, CPU, None if initial is None else lambda _: initial, anchors_of)
    found = recoverer(job)
    np.testing.assert_allclose(found.losses.numpy(), losses, rtol=5e-5)
    close = recoverer.steps[job.shape].images.double()
    assert float((close - images).norm() / images.norm()) < 2e-4
    assert [[which for which, _ in turn] for turn in turns(settings, len(made), job)] == [
        [which for which, _ in turn] for turn in order
    ]


def start(settings, job, made):
    return RecoverStep(settings, job, made, CPU).initial.clone()


def test_a_committee_looks_together_with_weights_of_its_priors():
    priors = (63.0, 65.3, 68.5)
    settings = recipe(committee=Committee(size=2, priors=priors))
    made = [teacher(seed) for seed in range(3)]
    for job in jobs(dataclasses.replace(settings, ipc=4), 6):
        pair = list(itertools.combinations(range(3), 2))[job.first_slot % 3]
        raw = np.exp(np.array(priors)[list(pair)] / 5)
        order = [tuple(zip(pair, raw / raw.sum(), strict=True))]
        assert [which for which, _ in turns(settings, 3, job)[0]] == list(pair)
        np.testing.assert_allclose([w for _, w in turns(settings, 3, job)[0]], raw / raw.sum())
        nets, layers = [network(seed).double() for seed in range(3)], [layers_of(one) for one in made]
        images, losses = transcribed(settings, job, nets, layers, order, start(settings, job, made))
        same(settings, job, made, order, images, losses)


def test_random_committees_depend_on_the_slot_alone_and_vary():
    settings = recipe(ipc=40, batch_size=3, committee=Committee(size=2, choice="random"))
    drawn = {}
    for job in jobs(settings, 6):
        (turn,) = turns(settings, 5, job)
        assert drawn.setdefault(job.first_slot, turn) == turn and [w for _, w in turn] == [0.5, 0.5]
    assert len(set(drawn.values())) > 5


@pytest.mark.parametrize("sides", [(9, 12, 9, 12), (12, 12, 12), (16, 12)])
def test_stages_change_the_size_and_inject_the_initial_images(sides):
    settings = recipe(iterations=7, stages=sides, residual=0.5)
    assert sum(count for _, count in stages(settings)) == 7
    made, job = [teacher(0), teacher(1)], jobs(settings, 6)[0]
    initial = start(settings, job, made).clamp(-1, 1)
    order = [((0, 1.0),), ((1, 1.0),)]
    nets, layers = [network(seed).double() for seed in range(2)], [layers_of(one) for one in made]
    images, losses = transcribed(settings, job, nets, layers, order, initial)
    same(settings, job, made, order, images, losses, initial)


def test_anchors_are_injected_in_place_of_the_initial_images():
    settings = recipe(iterations=7, stages=(9, 12, 9), residual=0.5)
    made, job, order = [teacher(0)], jobs(settings, 6)[0], [((0, 1.0),)]
    initial, seen = start(settings, job, made).clamp(-1, 1), []
    anchors = {stage: torch.full_like(initial, 0.2 * stage) for stage in (1, 2)}

    def anchors_of(asked, images, side):
        seen.append((asked, tuple(images.shape), side))
        return anchors[len(seen)]

    images, losses = transcribed(
        settings, job, [network(0).double()], [layers_of(made[0])], order, initial, anchors=anchors
    )
    same(settings, job, made, order, images, losses, initial, anchors_of)
    assert seen == [(job, (6, 3, 9, 9), 12), (job, (6, 3, 12, 12), 9)]


def test_flatness_compares_with_the_running_mean_of_the_images():
    settings = recipe(iterations=8, flatness_weight=300.0)
    made, job, order = [teacher(0)], jobs(settings, 6)[1], [((0, 1.0),)]
    nets, layers = [network(0).double()], [layers_of(made[0])]
    images, losses = transcribed(settings, job, nets, layers, order, start(settings, job, made))
    assert (losses[2:, 0] > losses[2:, 1:].sum(1)).all()
    same(settings, job, made, order, images, losses)


def test_dropped_convolutions_are_not_matched_and_keep_their_running_means():
    settings = recipe(iterations=9, statistics=("bn", "conv"), statistics_ema=0.7, drop_rate=0.5)
    made, job, order = [teacher(0, ("bn", "conv"))], jobs(settings, 6)[0], [((0, 1.0),)]
    live = live_layers(settings, job, "net-0", [not layer.is_batch_norm for layer in made[0].layers])
    is_conv = ["convs" in layer.name for layer in made[0].layers]
    assert bool(live[:, [not conv for conv in is_conv]].all()) and not bool(live[:, is_conv].all())
    nets, layers = [network(0).double()], [layers_of(made[0])]
    images, losses = transcribed(settings, job, nets, layers, order, start(settings, job, made), [{}], [live])
    same(settings, job, made, order, images, losses)


@pytest.mark.parametrize(
    ("settings", "number", "counts"),
    [
        ({"batch_size": 9}, 1, (3, 3, 3)),
        ({"batch_size": 4, "split_classes": True}, 0, (3, 1)),
    ],
)
def test_densification_is_added_class_by_class(settings, number, counts, monkeypatch):
    monkeypatch.setattr(by_statistics, "_TEMPERATURE", 0.5)
    plain, with_weight = (recipe(ipc=3, slots_per_job=0, densification_weight=w, **settings) for w in (0.0, 2.0))
    job, made = jobs(plain, 6)[number], [teacher(0)]
    assert job.counts == counts
    with_it, without = (RecoverStep(one, job, made, CPU) for one in (with_weight, plain))
    windows = with_it.windows[0]
    images = (0.05 * with_it.images).requires_grad_()  # eigenvalues near each other: softmax is not saturated
    total = with_it.loss(with_it.canvas, images, ((0, 1.0),), windows)[0]
    rest = without.loss(without.canvas, images, ((0, 1.0),), windows)[0]
    expected = torch.zeros((), dtype=torch.float64)
    for mine in view(images.detach().double(), windows[0], 12).flatten(1).split(counts):
        values = torch.linalg.eigvals(mine @ mine.T).real
        expected = expected + F.kl_div(values.log_softmax(0), (values / 0.5).softmax(0).detach(), reduction="sum")
    assert float((total - rest).detach()) == pytest.approx(2.0 * float(expected), rel=1e-4) and float(expected) > 1e-4


def test_a_teacher_without_layers_takes_part_with_cross_entropy():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(432, 6))
    settings = recipe()
    made = [teacher(0), Teacher.of(plain, "plain", CLASSES, range(6), DATASET)]
    found = ByStatistics(settings, made, CPU)(jobs(settings, 6)[0])
    assert (found.losses[1::2, 2] == 0).all() and (found.losses[::2, 2] > 0).all()


def test_without_iterations_the_initial_images_are_kept():
    settings = recipe(iterations=0)
    job = jobs(settings, 6)[0]
    initial = (torch.rand(6, 3, 12, 12, dtype=torch.float64) - MEAN) / STD
    found = ByStatistics(settings, [teacher(0)], CPU, lambda _: initial.float())(job)
    assert torch.equal(found.images, ((initial * STD + MEAN) * 255).round().to(torch.uint8))
    assert found.losses.shape == (0, 3)


def test_jobs_hold_all_slots_of_some_classes():
    settings = recipe(ipc=5, slots_per_job=0, batch_size=12)
    assert [(job.first_class, job.num_classes, job.num_slots) for job in jobs(settings, 5)] == [
        (0, 2, 5),
        (2, 2, 5),
        (4, 1, 5),
    ]
    same_class = jobs(recipe(ipc=5, slots_per_job=0, classes_per_job=1), 3)
    assert [job.shape for job in same_class] == [(1, 5)] * 3
    groups = jobs(recipe(ipc=5, slots_per_job=2, batch_size=4), 3)
    cells = [pair for job in groups for pair in zip(job.classes().tolist(), job.slots().tolist(), strict=True)]
    assert sorted(cells) == [(c, k) for c in range(3) for k in range(5)]
    assert [job.shape for job in groups] == [(2, 2), (1, 2), (2, 2), (1, 2), (2, 1), (1, 1)]


@pytest.mark.parametrize(
    ("ipc", "size", "num_classes"), [(50, 80, 1000), (100, 80, 1000), (3, 4, 5), (10, 80, 1000), (1, 7, 5)]
)
def test_jobs_that_split_classes_are_consecutive_images(ipc, size, num_classes):
    """EDC's and G-VBSM's batches: image k of class c is number c ipc + k, and every batch takes the next ones."""
    found = jobs(recipe(ipc=ipc, slots_per_job=0, batch_size=size, split_classes=True), num_classes)
    numbers = [(job.classes() * ipc + job.slots()).tolist() for job in found]
    assert numbers == [
        list(range(first, min(first + size, ipc * num_classes))) for first in range(0, ipc * num_classes, size)
    ]
    for job in found:
        assert job.num_images == len(job.classes()) == sum(job.counts)
        assert job.classes().bincount()[job.first_class :].tolist() == list(job.counts)
    whole = jobs(recipe(ipc=ipc, slots_per_job=0, batch_size=size), num_classes)
    assert (found == whole) == (size % ipc == 0)


@pytest.mark.parametrize("densification_weight", [0.0, 2.0])
def test_jobs_that_split_classes_depend_on_themselves_alone(densification_weight):
    """Buffers are shared by jobs of one size; a class's part is no other for it."""
    settings = recipe(
        **{"ipc": 3, "slots_per_job": 0, "batch_size": 4, "split_classes": True, "iterations": 2},
        densification_weight=densification_weight,
    )
    found, made = jobs(settings, 4), [teacher(0)]
    assert [job.counts for job in found] == [(3, 1), (2, 2), (1, 3)]
    together = ByStatistics(settings, made, CPU)
    images = [together(job).images for job in found]
    assert len(together.steps) == (3 if densification_weight else 1)
    assert torch.equal(ByStatistics(settings, made, CPU)(found[2]).images, images[2])
    shown = [SnapshotRecorder(settings, job, CPU).classes.tolist() for job in found]
    assert shown == [[0, 1], [2], [3]]  # the classes whose first image is in the job


def test_split_classes_needs_whole_classes_to_split():
    for wrong in ({"slots_per_job": 1}, {"slots_per_job": 0, "classes_per_job": 2}):
        with pytest.raises(ValueError, match="split_classes needs slots_per_job 0, classes_per_job 0 and"):
            recipe(split_classes=True, **wrong).check()
