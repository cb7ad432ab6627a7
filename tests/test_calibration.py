"""LPQLD's answers of the same labels, beside float64: annealed temperatures, few classes, a fitted temperature."""

import dataclasses

import pytest
import torch
from labelled_runs import made
from small import fastcondense

import fastcondense as fc
from fastcondense.labels.calibration import fitted_temperature, temperature_in
from fastcondense.labels.labels import Wanted, answers, student_loss
from fastcondense.recipe.train import Train
from fastcondense.recover.stage import condensed_set
from fastcondense.run import Run
from fastcondense.students.arms import CONDENSED, Arm
from fastcondense.students.students import task_of
from fastcondense.teachers.kept import labelling_teachers

FLAGS = (
    "--squeeze.teachers zoo/convnet1 --squeeze.epochs 1 --squeeze.gate-images 0 --recover.iterations 1 "
    "--train.epochs 5 --labels.pool 0.4 --train.seeds 1 --evaluate.baselines --train.student-temperature fitted "
    "--train.temperature 8 --train.anneal 2 0.5 3 --train.label-classes 3"
).split()
TEMPERATURES = [8.0, 4.0, 4.0, 3.0, 3.0]


def test_temperatures_fall_as_published():
    """20 * 0.7^(e // 30), and 2 at least, of epochs that are numbered from 1."""
    train = Train(temperature=20.0, anneal=(30, 0.7, 2.0))
    found = [temperature_in(train, epoch) for epoch in range(300)]
    assert found[:29] == [20.0] * 29 and found[29] == pytest.approx(14.0) and found[59] == pytest.approx(9.8)
    assert found[179] == pytest.approx(20 * 0.7**6) and found[209:] == [2.0] * 91  # 20 * 0.7^7 is 1.6
    assert {temperature_in(Train(temperature=7.0), epoch) for epoch in range(9)} == {7.0}


@pytest.mark.parametrize(("rows", "classes", "kept"), [(1, 2, 1), (5, 7, 3), (3, 1000, 100)])
def test_the_loss_is_published_quantised_labels(rows, classes, kept):
    """Top logits' softmax at the epoch's temperature, zero elsewhere, to the student's at its own; and the gradient."""
    generator = torch.Generator().manual_seed(rows)
    student = (3 * torch.randn(rows, classes, generator=generator)).requires_grad_()
    teachers = 5 * torch.randn(2, rows, classes, generator=generator)
    labels, share = torch.zeros(rows, dtype=torch.int64), torch.ones(rows)
    wanted = Wanted(teachers, labels, labels, share, temperature=3.5, label_classes=kept)
    train = Train(temperature=20.0, student_temperature="fitted", label_classes=kept)
    loss = student_loss(student, wanted, train)
    (gradient,) = torch.autograd.grad(loss, student)

    top = teachers.double().mean(0).topk(kept, 1)
    label = torch.zeros(rows, classes, dtype=torch.float64).scatter_(1, top.indices, (top.values / 3.5).softmax(1))
    exact = student.detach().double().requires_grad_()
    kl = torch.nn.KLDivLoss(reduction="batchmean")
    losses = [kl((exact / (k / 100)).log_softmax(1), label) for k in range(1, 101)]
    best = int(torch.stack(losses).argmin())
    assert float(fitted_temperature(student, label.float())) == pytest.approx((best + 1) / 100)
    torch.testing.assert_close(loss.detach().double(), losses[best].detach(), rtol=2e-6, atol=1e-7)
    (truth,) = torch.autograd.grad(losses[best], exact)
    torch.testing.assert_close(gradient.double(), truth, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(answers(wanted, classes, 20.0).double(), label, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(answers(wanted, classes, None), teachers.mean(0))


def test_a_fitted_temperature_is_between_its_bounds():
    """A label of one class wants the sharpest answer, one of all classes alike the dullest."""
    student = torch.tensor([[2.0, 0.0, -1.0]])
    assert float(fitted_temperature(student, torch.tensor([[1.0, 0.0, 0.0]]))) < 0.1  # equal to rounding
    assert float(fitted_temperature(student, torch.full((1, 3), 1 / 3))) == 1.0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made(tmp_path_factory.mktemp("run") / "digits", FLAGS, "recover", "relabel", "train")


@pytest.mark.parametrize("arm", [CONDENSED, Arm("random"), Arm("full")], ids=lambda arm: arm.name)
def test_every_epoch_has_its_temperature(run, arm):
    task = task_of(run, arm, 0, condensed_set(run), labelling_teachers(run))
    for epoch, temperature in enumerate(TEMPERATURES):
        for item in task.batches(epoch):
            wanted = task.make(item).wanted
            assert wanted.temperature == temperature and wanted.label_classes == 3
            label = answers(wanted, 10, 1.0)
            assert set((label > 0).sum(1).tolist()) == {3} and bool(wanted.logits.isfinite().all())


def test_a_loop_of_ones_own_gets_few_classes_at_the_epochs_temperatures(run):
    task = task_of(run, CONDENSED, 0, condensed_set(run), labelling_teachers(run))
    for epoch, batches in enumerate(fc.views(run.out)):
        for (_, labels), item in zip(batches, task.batches(epoch), strict=True):
            wanted = task.make(item).wanted
            assert bool(((labels > 0).sum(1) == 3).all())
            top = wanted.logits[0].double().topk(3, 1)
            label = torch.zeros(labels.shape, dtype=torch.float64)
            label.scatter_(1, top.indices, (top.values / TEMPERATURES[epoch]).softmax(1))
            torch.testing.assert_close(labels.double(), label, rtol=1e-5, atol=1e-7)


def test_logits_are_the_teachers(run):
    """All of them, whatever classes a label counts."""
    task = task_of(run, CONDENSED, 0, condensed_set(run), labelling_teachers(run))
    ((_, logits), *_), item = next(iter(fc.views(run.out, labels="logits"))), next(iter(task.batches(0)))
    torch.testing.assert_close(logits, task.make(item).wanted.logits.float().mean(0))
    assert float(logits.min()) > -1e3


def test_stored_labels_of_as_many_logits_are_the_same(run):
    flags = [*FLAGS, "--labels.source", "stored", "--labels.top-k", "4"]
    assert fastcondense("relabel", run.out, *flags) == fastcondense("train", run.out, *flags) == 0
    labels = dataclasses.replace(run.recipe.labels, source="stored", top_k=4)
    other = Run(dataclasses.replace(run.recipe, labels=labels), run.out)
    other.open()
    tasks = [task_of(one, CONDENSED, 0, condensed_set(one), labelling_teachers(run)) for one in (run, other)]
    for epoch in range(5):
        for first, second in zip(*(task.batches(epoch) for task in tasks), strict=True):
            exact, stored = tasks[0].make(first).wanted, tasks[1].make(second).wanted
            assert exact.temperature == stored.temperature
            labels = [answers(wanted, 10, 1.0) for wanted in (exact, stored)]
            torch.testing.assert_close(*labels, rtol=5e-3, atol=1e-4)  # of float16 logits


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--train.anneal", "2", "0.5", "9"], "train.anneal ends at 9.0, above train.temperature 8.0"),
        (["--train.label-classes", "10"], "train.label_classes must be less than the 10 classes, got 10"),
        (["--labels.source", "stored", "--labels.top-k", "2"], "label_classes is 3, more than labels.top_k 2"),
        (
            ["--labels.source", "stored", "--labels.top-k", "4", "--train.label-classes", "0"],
            "needs train.label_classes",
        ),
        (["--train.loss", "mse_ce"], "train.student_temperature is read where train.loss is kl or kl_t2"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(run, capfd, flags, words):
    assert fastcondense("train", run.out, *FLAGS, *flags) != 0
    error = capfd.readouterr().err
    assert words in error and "Traceback" not in error
