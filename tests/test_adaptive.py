"""Adaptive nested recover: what is chosen, what rests, and what a cell is matched with, against loops over images."""

import dataclasses

import numpy as np
import pytest
import torch
from small import fastcondense, frozen_network, shards
from test_nested import CLASSES, CPU, DATASET, inputs_of_batch_norms, teacher

from fastcondense.data.jobs import Job, jobs
from fastcondense.data.noise import noise
from fastcondense.files import read_json
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Nested, Recover
from fastcondense.recover.adaptive import AdaptiveJob, AdaptiveRecoverer, PrefixChoice
from fastcondense.recover.recover import Recoverer, Sources
from fastcondense.recover.unfinished import Unfinished

WHOLE = torch.tensor([[0, 0, 12, 12, 0, 0, 0]], dtype=torch.int32)


def recipe(ipc, mode="adaptive", rounds=5, sizes=(), weight=1.0, **recover):
    settings = {"iterations": 20, "lr": 0.1, "match_weight": 0.5, "batch_size": 6, "crop_scale": (0.6, 1.0)} | recover
    settings |= {"slots_per_job": 0, "classes_per_job": 3} if mode == "adaptive" else {"classes_per_job": 3}
    nested = Nested(mode=mode, rounds=rounds, sizes=sizes, weight=weight)
    return Recipe(ipc=ipc, seed=5, dataset=DATASET, recover=Recover(nested=nested, **settings)).check()


def recoverer(settings, made):
    return AdaptiveRecoverer(settings, made, CPU, Sources(noise(settings, CPU)), len(CLASSES))


def plain_distance(net, made, batches, classes=None):
    """sum_l w_l (|mean - target| + |var - target|) of all images together, float64."""
    total = 0.0
    targets = made.targets
    if classes is not None:
        targets = {k: [v[classes].double().mean(0) for v in vs] for k, vs in made.class_targets.items()}
    for number, seen in enumerate(inputs_of_batch_norms(net, made.layers, torch.cat(batches).double())):
        mean, var = targets[made.layers[number].name]
        far = torch.norm(mean - seen.mean((0, 2, 3))) + torch.norm(var - seen.var((0, 2, 3), correction=0))
        total = total + (10 if number == 0 else 1) * far
    return total


def plain_choices(history):
    """Sizes that are matched in each round, and slots that rest, of distances before and after each round."""
    sizes, rests, past, now = [], [], set(), None
    for number, distances in enumerate(history):
        if number == 0:
            now = 1
        else:
            past.add(now)
            changes = {n: abs(distances[n - 1] - history[number - 1][n - 1]) for n in range(1, len(distances) + 1)}
            now = min(changes, key=lambda n: (-changes[n], n))
        sizes.append(now)
        rests.append(max([n for n in past if n < now], default=0))
    return sizes, rests


def test_choices_are_those_of_the_specification():
    """The timeline of the specification: chosen 1, 4, 2, 5 in turn, with nothing, 1, 1 and 4 at rest."""
    choice, history = PrefixChoice((1, 2, 3, 4, 5)), [[9.0, 9, 9, 9, 9]]
    for changed in (4, 2, 5):
        history.append([value - (n == changed) - 0.1 for n, value in enumerate(history[-1], 1)])
    seen = []
    for distances in history:
        choice.choose(distances)
        seen.append((choice.size, choice.frozen))
    assert seen == [(1, 0), (4, 1), (2, 1), (5, 4)]
    assert ([s for s, _ in seen], [f for _, f in seen]) == plain_choices(history)


def test_it_is_the_largest_change_and_not_the_largest_fall():
    choice = PrefixChoice((2, 4))
    for distances in ([1.0, 1.0], [0.7, 2.0]):
        choice.choose(distances)
    assert choice.size == 4 and choice.frozen == 2
    choice.choose([0.9, 2.2])
    assert choice.past == [2, 4] and choice.distances == [0.9, 2.2]


@pytest.mark.parametrize("kind", ["global", "category"])
def test_a_job_follows_a_loop_over_its_images(kind):
    """Every choice of a small job, from distances in float64 of the images themselves; what rests keeps its bits."""
    made, net = teacher(), frozen_network("zoo/convnet3_w32", 6).double()
    settings = recipe(5, rounds=7, targets=(kind,))
    running = AdaptiveJob(recoverer(settings, [made]), jobs(settings, 6)[1])
    classes = None if kind == "global" else torch.tensor([3, 4, 5])
    history, chosen, rests = [], [], []
    while True:
        cells = [state["images"].clone() for state in running.states]
        history.append([float(plain_distance(net, made, cells[:n], classes)) for n in range(1, 5)])
        np.testing.assert_allclose(running.distances(), history[-1], rtol=2e-5)
        chosen.append(running.choice.size)
        rests.append(running.choice.frozen)
        if len(history) == 8:
            break
        for slot in range(5):
            running.advance(5 * (len(history) - 1) + slot)
        for slot, (before, state) in enumerate(zip(cells, running.states, strict=True)):
            assert torch.equal(before, state["images"]) == (slot < rests[-1])
    assert (chosen, rests) == plain_choices(history)
    assert max(rests) > 0 and len(set(chosen)) > 2  # otherwise nothing was tested
    done = [int(state["step"]) for state in running.states]
    assert done[-1] == 20 and done[0] < 20


def test_loss_and_gradient_are_those_of_the_cell_and_the_prefix():
    """Float64: beside its own matching a cell has that of the prefix, times the number of cells in it."""
    made, net = teacher(), frozen_network("zoo/convnet3_w32", 6).double()
    running = AdaptiveJob(recoverer(recipe(4, weight=0.7), [made]), Job(0, 0, 4, 0, 3))
    running.choice.size = 3
    for slot, inside in ((1, True), (3, False)):
        running.step.load(running.cells[slot])
        images = running.step.images.clone().requires_grad_()
        losses = running.step.loss(running.step.canvas, images, ((0, 1.0),), WHOLE)
        (gradient,) = torch.autograd.grad(losses[2], images)
        truth = images.detach().double().requires_grad_()
        others = [running.states[other]["images"].double() for other in (0, 2)]
        expected = plain_distance(net, made, [truth])
        if inside:
            expected = expected + 0.7 * 3 * plain_distance(net, made, [others[0], truth, others[1]])
        (wanted,) = torch.autograd.grad(0.5 * expected, truth)
        assert float(losses[2].detach()) == pytest.approx(float(0.5 * expected.detach()), rel=1e-5)
        assert float((gradient - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("ema", [0.0, 0.4])
def test_without_prefixes_it_is_independent_recover_to_the_bit(ema):
    made = [teacher(), teacher()]
    settings = recipe(3, sizes=(3,), rounds=4, statistics_ema=ema, flatness_weight=0.1)
    whole = [recoverer(settings, made)(job).images for job in jobs(settings, 6)]
    alone = recipe(3, mode="independent", statistics_ema=ema, flatness_weight=0.1)
    make = Recoverer(alone, made, CPU, Sources(noise(alone, CPU)))
    for job in jobs(alone, 6):
        mine = whole[job.first_class // 3].view(3, 3, 3, 12, 12)[:, job.first_slot]
        assert torch.equal(mine, make(job).images)


def test_an_interrupted_job_goes_on_to_the_same_bits(tmp_path):
    settings = recipe(4, rounds=6)
    made, job = recoverer(settings, [teacher()]), Job(0, 0, 4, 0, 3)
    whole, stopped = made(job), AdaptiveJob(made, job)
    for number in range(14):  # in the middle of the fourth round
        stopped.advance(number)
    Unfinished.of(tmp_path, job, "mine").write(14, stopped.state())
    resumed = made(job, None, Unfinished.of(tmp_path, job, "mine"))
    assert torch.equal(resumed.images, whole.images) and torch.equal(resumed.losses, whole.losses)
    again = AdaptiveJob(made, job)
    again.restore(14, Unfinished.of(tmp_path, job, "mine").read()[1])
    assert again.choice == stopped.choice and torch.equal(again.images(), stopped.images())
    assert not torch.equal(again.images(), AdaptiveJob(made, job).images())


def test_settings_that_do_not_go_together_are_refused():
    good = recipe(3)
    for change, words in (
        ({"slots_per_job": 1}, "slots_per_job 0"),
        ({"batch_size": 2}, "at least ipc 3"),
        ({"stages": (6, 12)}, "one size"),
        ({"nested": Nested(mode="adaptive", rounds=21)}, "1 to 20 rounds"),
        ({"nested": Nested(mode="adaptive", sizes=(0,), rounds=2)}, "sizes of at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(good, recover=dataclasses.replace(good.recover, **change)).check()


def test_from_the_command_line_to_a_curve(tmp_path):
    out = tmp_path / "digits"
    flags = (
        "--recover.nested.mode adaptive --recover.nested.rounds 4 --recover.slots-per-job 0 "
        "--recover.classes-per-job 10 --train.seeds 1 --evaluate.baselines"
    ).split()
    assert fastcondense("recover", out, *flags, "--ipc", "3") == 0
    assert len(shards(out)) == 1
    assert fastcondense("evaluate", out, *flags, "--ipc", "1,3", "--evaluate.compare", "independent", "prefix") == 0
    curves = read_json(out / "curve.json")["top1_last"]
    assert set(curves) == {"nested", "independent", "prefix"}
    assert curves["independent"] == curves["prefix"]  # slots alone: a prefix is the set of that size
