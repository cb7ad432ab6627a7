"""DELT: images of a class that begin one after another, against a float64 transcription of its loop and choice."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from small import fastcondense
from test_recover_methods import CPU, MEAN, STD, distances, layers_of, network, recipe, start, teacher, view
from torch.nn import functional as F

from fastcondense.data.jobs import jobs
from fastcondense.recover.by_statistics import ByStatistics
from fastcondense.recover.early_late import first_rounds
from fastcondense.recover.representatives import _choice
from fastcondense.recover.schedule import stages, window_table


def published_rounds(ipc: int, rounds: int) -> list[int]:
    """The first round whose cumulated share of images holds the image, as the published code finds it."""
    sizes = [ipc // rounds + (number < ipc % rounds) for number in range(rounds)]
    return [next(number for number in range(rounds) if image < sum(sizes[: number + 1])) for image in range(ipc)]


@pytest.mark.parametrize(("ipc", "rounds"), [(50, 8), (10, 8), (3, 8), (1, 8), (7, 2), (5, 1)])
def test_images_begin_in_the_round_of_the_published_code(ipc, rounds):
    assert first_rounds(ipc, rounds).tolist() == published_rounds(ipc, rounds)


def transcribed(settings, job, initial, net, layers):
    """One Adam over all images, whose gradient is 0 for those that have not begun; statistics of the others alone."""
    recover, table = settings.recover, window_table(settings, job)
    images = initial.double().clone().requires_grad_()
    optimizer = torch.optim.Adam([images], lr=recover.lr, betas=recover.betas, eps=1e-8)
    first, losses = published_rounds(job.num_slots, recover.rounds) * job.num_classes, []
    round_of = [number for number, (_, count) in enumerate(stages(settings)) for _ in range(count)]
    for t in range(recover.iterations):
        optimizer.param_groups[0]["lr"] = 0.5 * recover.lr * (1 + math.cos(math.pi * t / recover.iterations))
        live = [k for k in range(job.num_images) if first[k] <= round_of[t]]
        logits, distance = distances(net, view(images[live], table[t, 0], 12), layers)
        entropy, matching = F.cross_entropy(logits, job.classes()[live]), recover.match_weight * distance
        optimizer.zero_grad()
        (entropy + matching).backward()
        optimizer.step()
        with torch.no_grad():
            images.copy_(torch.maximum(torch.minimum(images, (1 - MEAN) / STD), -MEAN / STD))
        losses.append([float(value.detach()) for value in (entropy + matching, entropy, matching)])
    return images.detach(), np.array(losses)


def test_rounds_are_those_of_the_published_loop():
    settings = recipe(ipc=5, rounds=3, iterations=8, slots_per_job=0, batch_size=10)
    made, job = teacher(0), jobs(settings, 6)[1]
    assert job.shape == (2, 5)
    initial = start(settings, job, [made]).clamp(-1, 1)
    images, losses = transcribed(settings, job, initial, network(0).double(), layers_of(made))
    recoverer = ByStatistics(settings, [made], CPU, lambda _: initial)
    found = recoverer(job)
    np.testing.assert_allclose(found.losses.numpy(), losses, rtol=5e-5)
    close = recoverer.steps[job.shape].images.double()
    assert float((close - images).norm() / images.norm()) < 2e-4
    again = recoverer(dataclasses.replace(job, first_class=0))  # the same buffers, of another job and back
    assert not torch.equal(again.images, found.images) and torch.equal(recoverer(job).images, found.images)


def test_the_median_is_chosen_first_and_then_outwards():
    generator = np.random.default_rng(0)
    for count in (9, 4, 1):
        logits = generator.normal(size=(count, 3))
        shares = np.exp(logits)[:, 1] / np.exp(logits).sum(1)
        ranked, middle, sign, wanted = np.argsort(shares), math.ceil(count / 2), -1, []
        for number in range(2 * count + 1):
            place, sign = middle + int(sign * (number + 1) / 2), -sign
            wanted += [int(ranked[place])] if 0 <= place < count else []
        found = _choice("median", torch.zeros(count, 1), torch.from_numpy(logits), 1, count)
        assert found.tolist() == wanted and sorted(wanted) == list(range(count))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--recover.slots-per-job 1", "recover.rounds needs objective statistics, slots_per_job 0"),
        ("--recover.stages 7 8", "recover.rounds needs objective statistics, slots_per_job 0"),
        ("--recover.initial.space pixels", "recover.initial.kind median needs a teacher"),
    ],
)
def test_what_rounds_and_medians_need(flags, message, tmp_path, capsys):
    assert fastcondense("recover", tmp_path, "--recipe", "delt/digits-ipc2", *flags.split()) == 1
    assert message in capsys.readouterr().err
