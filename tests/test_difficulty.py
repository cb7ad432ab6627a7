"""Difficulty, its groups and their statistics (PSM) against loops over single images in float64."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from rich.console import Console
from small import fastcondense, frozen_network
from torch import nn

from fastcondense.data.jobs import Job
from fastcondense.log import Log
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Initial, Recover
from fastcondense.recipe.settings import Dataset, Squeeze
from fastcondense.recover import initial
from fastcondense.recover.by_statistics import RecoverStep
from fastcondense.run import Run
from fastcondense.statistics.difficulty import grade
from fastcondense.statistics.targets import group_moments
from fastcondense.teachers.teacher import Teacher

DIGITS = Dataset(name="digits", image_size=8, resize=8, mean=(0.3, 0.4, 0.5), std=(0.3, 0.2, 0.25))
NAMES = ("zoo/convnet3_w32", "zoo/convnet1")
RECOVER = Recover(targets=("difficulty",), initial=Initial(kind="difficulty"), iterations=2)


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A run with four groups, its teachers, and the groups of each class."""
    recipe = Recipe(ipc=4, seed=4, dataset=DIGITS, squeeze=Squeeze(teachers=NAMES), recover=RECOVER).check()
    run = Run(recipe, tmp_path_factory.mktemp("run"), None, log=Log(Console(file=io.StringIO())))
    nets = [frozen_network(name, 10, seed) for seed, name in enumerate(NAMES)]
    teachers = [
        Teacher.of(net, name, run.real.classes, range(10), DIGITS) for net, name in zip(nets, NAMES, strict=True)
    ]
    return run, [net.double() for net in nets], teachers, grade(run, teachers)


def seen(net: nn.Module, images: torch.Tensor) -> list[tuple[nn.Module, torch.Tensor]]:
    """The BatchNorms of a float64 network, and their inputs."""
    found, handles = [], []
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(lambda module, inputs: found.append((module, inputs[0]))))
    net(images)
    for handle in handles:
        handle.remove()
    return found


def score(net: nn.Module, image: torch.Tensor) -> float:
    """The formula, of one image: E_l (|mu - m|_2 + |log (s + eps) / (v + eps)|_2) / sqrt(C)."""
    terms = []
    for module, x in seen(net, image[None]):
        mean, var = x[0].mean((1, 2)), x[0].var((1, 2), correction=0)
        spread = torch.log((var + 1e-6) / (module.running_var + 1e-6))
        norms = torch.linalg.norm(mean - module.running_mean) + torch.linalg.norm(spread)
        terms.append(float(norms) / np.sqrt(x.shape[1]))
    return float(np.mean(terms))


def test_groups_are_cut_from_the_mean_rank_of_the_published_score(graded):
    run, nets, _, groups = graded
    split = run.real.train
    images = run.normalize(torch.from_numpy(split.images).permute(0, 3, 1, 2)).double()
    for label in (0, 7):
        members = np.flatnonzero(split.labels == label)
        places = np.zeros(len(members))
        for net in nets:
            scores = np.array([score(net, images[k]) for k in members])
            places += np.argsort(np.argsort(scores, kind="stable"), kind="stable")
        order = members[np.argsort(places, kind="stable")]
        for found, wanted in zip(groups[label], np.array_split(order, 4), strict=True):
            assert found.tolist() == wanted.tolist()
    assert sorted(np.concatenate([np.concatenate(one) for one in groups])) == list(range(len(split)))


def test_statistics_of_a_group_are_those_of_all_its_pixels_and_what_a_slot_is_matched_with(graded):
    run, nets, teachers, groups = graded
    images = run.normalize(torch.from_numpy(run.real.train.images).permute(0, 3, 1, 2)).double()
    for group in (0, 3):
        ids = np.concatenate([of_class[group] for of_class in groups])
        for net, teacher in zip(nets, teachers, strict=True):
            for (_, x), moments in zip(seen(net, images[ids]), group_moments(teacher, group), strict=True):
                for found, wanted in zip(moments, (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)), strict=True):
                    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=2e-5, atol=2e-6)
    with pytest.raises(ValueError, match="no statistics of group 4"):
        group_moments(teachers[0], 4)
    step = RecoverStep(run.recipe, Job(3, 3, 1, 0, 10), teachers, run.device)
    for teacher, targets in zip(teachers, step.matching, strict=True):
        wanted = torch.cat([vector for layer in group_moments(teacher, 3) for vector in layer])
        assert torch.equal(targets.targets[0].float(), wanted)


def test_a_slot_begins_with_the_hardest_image_of_its_group(graded):
    run, _, teachers, groups = graded
    images = run.normalize(torch.from_numpy(run.real.train.images).permute(0, 3, 1, 2))
    begins = initial.make(run, teachers)(Job(2, 2, 1, 3, 4))
    for label, found in zip(range(3, 7), begins, strict=True):
        assert torch.equal(found, images[groups[label][2][-1]])


def test_groups_are_kept_and_belong_to_a_number_of_images(graded):
    run, _, teachers, groups = graded
    (folder,) = run.out.glob("difficulty-*")
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = grade(run, teachers)
    assert [[part.tolist() for part in one] for one in again] == [[part.tolist() for part in one] for one in groups]
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == files
    assert "ipc" in run.recipe.recover_parts()


def test_what_groups_need(tmp_path, capsys, graded):
    flags = ["--recipe", "psm/digits-ipc2", "--recover.slots-per-job", "2"]
    assert fastcondense("recover", tmp_path, *flags) == 1
    assert "recover.targets difficulty needs slots_per_job 1 and statistics bn" in capsys.readouterr().err
    run, _, teachers, _ = graded
    many = dataclasses.replace(run.recipe, ipc=200)
    with pytest.raises(ValueError, match="200 groups of difficulty are wanted"):
        grade(Run(many, tmp_path, None, log=Log(Console(file=io.StringIO()))), teachers)
    bare = dataclasses.replace(teachers[0], layers=[])
    with pytest.raises(ValueError, match="no teacher has one that is matched"):
        grade(run, [bare])
