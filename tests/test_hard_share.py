"""Soft, hard, soft labels (HALD): which epochs, which views, the smoothed loss, and what is stored."""

import dataclasses

import numpy as np
import pytest
import torch
from labelled_runs import made
from small import fastcondense
from timm.data.mixup import mixup_target

import fastcondense as fc
from fastcondense.files import read_json
from fastcondense.labels.labels import Wanted, answers, student_loss
from fastcondense.labels.stored_labels import first_rows
from fastcondense.labels.views import ReplayedViews
from fastcondense.plan.disk import disk_bytes
from fastcondense.plan.extent import extent
from fastcondense.recipe.train import Train
from fastcondense.recover.stage import condensed_set
from fastcondense.students.arms import CONDENSED, Arm
from fastcondense.students.students import task_of
from fastcondense.teachers.kept import labelling_teachers

FLAGS = (
    "--squeeze.teachers zoo/convnet1 --squeeze.epochs 1 --squeeze.gate-images 0 --recover.iterations 1 "
    "--train.epochs 5 --train.hard-share 0.4 --train.hard-smoothing 0.8 --labels.pool 0.2 --train.seeds 1 "
    "--evaluate.baselines random_soft full_soft"
).split()


@pytest.mark.parametrize(
    ("epochs", "share", "soft", "hard"), [(300, 0.5, 75, 150), (5, 0.4, 1, 2), (100, 0.29, 35, 29), (300, 0, 150, 0)]
)
def test_the_hard_epochs_are_the_middle_ones(epochs, share, soft, hard):
    """As HALD splits them: half of the soft epochs, rounded down, the hard ones, and the rest of the soft ones."""
    assert Train(epochs=epochs, hard_share=share).hard_epochs == range(soft, soft + hard)


def test_smoothed_labels_are_timms():
    generator = torch.Generator().manual_seed(3)
    logits, labels = torch.randn(6, 7, generator=generator), torch.randint(0, 7, (6,), generator=generator)
    truth = mixup_target(labels, 7, lam=0.3, smoothing=0.8)
    wanted = Wanted(None, labels, labels.flip(0), torch.full((6,), 0.3), 0.8)
    torch.testing.assert_close(answers(wanted, 7, 20.0), truth)
    loss = student_loss(logits, wanted, Train(loss="mse_ce", ce_labels="own"))
    assert loss.item() == pytest.approx(
        -(truth.double() * logits.double().log_softmax(1)).sum(1).mean().item(), rel=1e-6
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Twenty images in batches of eight, so two batches an epoch; a pool of two batches; epochs 1 and 2 are hard."""
    return made(tmp_path_factory.mktemp("run") / "digits", FLAGS, "recover", "relabel")


@pytest.mark.parametrize("arm", [CONDENSED, Arm("random"), Arm("full")], ids=lambda arm: arm.name)
def test_hard_epochs_show_their_own_views_and_the_classes(run, arm):
    task = task_of(run, arm, 0, condensed_set(run), labelling_teachers(run))
    for epoch in range(5):
        batches = [(item[1] if isinstance(item, tuple) else item, task.make(item)) for item in task.batches(epoch)]
        spans, is_hard = [(item.span.epoch, item.span.begin) for item, _ in batches], epoch in (1, 2)
        assert len(batches) == 2 and {item.shape for item, _ in batches} == {(8, 8, is_hard)}
        assert spans == [(epoch, 0), (epoch, 8)] if is_hard else set(spans) <= {(0, 0), (0, 8)}
        for _, batch in batches:
            assert (batch.wanted.logits is None) == is_hard and batch.wanted.smoothing == 0.8 * is_hard


def test_hard_labels_are_the_classes_in_every_epoch(run):
    task = task_of(run, Arm("random", "hard"), 0, condensed_set(run), labelling_teachers(run))
    wanted = [task.make(item).wanted for epoch in range(5) for item in task.batches(epoch)]
    assert {(of.logits is None, of.smoothing) for of in wanted} == {(True, 0.0)}


def test_a_loop_of_ones_own_gets_the_smoothed_classes(run):
    for epoch, batches in enumerate(fc.views(run.out)):
        for _, labels in batches:
            torch.testing.assert_close(labels.sum(1), torch.ones(len(labels)))
            assert bool((labels.sort(1)[0][:, :8] == labels.new_tensor(0.08)).all()) == (epoch in (1, 2))


def test_no_label_of_a_hard_epoch_is_stored(run):
    """Two batches are: those of the pool, which are of epoch 0. The plan knows it, with a pool and without."""
    flags = [*FLAGS, "--labels.source", "stored"]
    assert fastcondense("relabel", run.out, *flags) == fastcondense("train", run.out, *flags) == 0
    (manifest,) = run.out.glob("labels/**/seed0/manifest.json")
    logits = np.load(manifest.parent / "logits.npy")
    assert read_json(manifest)["first_rows"] == [0, 16, 16, 16, 16, 16] and logits.shape == (16, 10)
    sets = condensed_set(run)
    for pool, rows in ((0.2, 16), (1.0, 60)):
        labels = dataclasses.replace(run.recipe.labels, source="stored", pool=pool)
        views = ReplayedViews(*sets.flat(), labels, run.normalize, 0)
        assert first_rows(views, run.recipe.train)[-1] == rows
        planned = disk_bytes(dataclasses.replace(run.recipe, labels=labels), extent(run.recipe, None), [])
        assert planned["labels"] == rows * 20


def test_labels_of_the_first_images_alone_are_stored(run):
    flags = [*FLAGS, "--labels.source", "stored", "--train.prefix", "1"]
    assert fastcondense("relabel", run.out, *flags) == fastcondense("train", run.out, *flags) == 0
    rows = [read_json(path)["first_rows"][-1] for path in run.out.glob("labels/**/seed0/manifest.json")]
    assert sorted(rows) == [8, 16]  # one batch of ten images an epoch, where twenty have two
