"""The user's own term of the recover loss, against a float64 transcription; files that changed or are wrong."""

import dataclasses
import sys

import pytest
import torch
from small import FLAGS, fastcondense, frozen_network, shards
from torch.nn import functional as F

from fastcondense.data.jobs import jobs
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Recover
from fastcondense.recipe.settings import Dataset
from fastcondense.recover.by_statistics import ByStatistics, RecoverStep
from fastcondense.teachers.teacher import Teacher

CPU = torch.device("cpu")
DATASET = Dataset(name="digits", image_size=12, resize=12, mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.25))
MARGIN = """
def margin(views, logits, classes):
    own = logits.gather(1, classes[:, None])
    return 0.3 * (logits - own).logsumexp(1).mean() + 0.01 * views.pow(4).mean()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with the user's file; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "terms.py").write_text(MARGIN)
    yield tmp_path
    forget()


def forget() -> None:
    """The user's modules are imported anew, as in a new process."""
    for name in [name for name in sys.modules if name.startswith("fastcondense_user_") or name == "terms"]:
        del sys.modules[name]


def recipe(**recover):
    settings = Recover(**{"iterations": 4, "lr": 0.1, "match_weight": 0.0, "batch_size": 6} | recover)
    whole = dataclasses.replace(settings, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    return Recipe(ipc=1, seed=5, dataset=DATASET, recover=whole)


def teacher(seed):
    return Teacher.of(frozen_network("zoo/wrn16_2", 8, seed), f"wrn-{seed}", list("abcdef"), range(1, 7), DATASET)


@pytest.mark.parametrize("turn", [((0, 1.0),), ((0, 0.25), (1, 0.75))], ids=["one", "committee"])
def test_value_and_gradient_are_float64s(turn):
    nets = [frozen_network("zoo/wrn16_2", 8, seed).double() for seed in (0, 1)]
    settings = recipe(loss="terms.py:margin")
    job = jobs(settings, 6)[0]
    step = RecoverStep(settings, job, [teacher(0), teacher(1)], CPU)
    images = step.images.clone().requires_grad_()
    losses = step.loss(step.canvas, images, turn, step.windows[0])
    (ours,) = torch.autograd.grad(losses[0], images)

    exact = images.detach().double().requires_grad_()
    classes, entropy, own = torch.arange(1, 7), 0.0, 0.0  # the second of the teacher's eight outputs is the first class
    for which, weight in turn:
        logits = nets[which](exact)
        entropy = entropy + weight * F.cross_entropy(logits, classes)
        excess = (logits.exp().sum(1) / logits[torch.arange(6), classes].exp()).log()
        own = own + weight * (0.3 * excess.mean() + 0.01 * (exact**4).mean())
    (truth,) = torch.autograd.grad(entropy + own, exact)
    expected = torch.stack((entropy + own, entropy, 0 * entropy))
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-6)
    assert float((ours.double() - truth).norm() / truth.norm()) < 1e-5


def test_it_changes_the_images_and_nothing_else_does():
    (job,) = jobs(recipe(), 6)
    plain, own, module = (
        ByStatistics(recipe(loss=loss), [teacher(0)], CPU)(job) for loss in ("", "terms.py:margin", "terms:margin")
    )
    assert not torch.equal(plain.images, own.images) and torch.equal(own.images, module.images)
    assert torch.equal(plain.losses[0, 1:], own.losses[0, 1:]) and own.losses[0, 0] > plain.losses[0, 0]


def test_it_sees_float32_where_teachers_compute_in_bf16(folder):
    """Its gradient goes through the cast: without a teacher's part the images shrink towards zero."""
    (folder / "seen.py").write_text(
        "def term(views, logits, classes):\n"
        "    assert str(views.dtype) == str(logits.dtype) == 'torch.float32'\n"
        "    return 1e4 * views.square().mean()\n"
    )
    settings = recipe(loss="seen.py:term", precision="bf16", iterations=1)
    recoverer = ByStatistics(settings, [teacher(0)], CPU)
    (job,) = jobs(settings, 6)
    recoverer.begin(job)
    before = recoverer.step.images.abs().mean()
    recoverer.advance(0)
    assert recoverer.step.images.abs().mean() < before


@pytest.mark.parametrize(
    ("body", "got"),
    [
        ("logits.logsumexp(1)", r"\(6,\) of torch.float32"),
        ("logits.mean().detach()", r"\(\) of torch.float32"),
        ("0.5", "float"),
    ],
)
def test_what_is_not_one_number_with_a_gradient_is_refused(folder, body, got):
    (folder / "wrong.py").write_text(f"def term(views, logits, classes):\n    return {body}\n")
    settings = recipe(loss="wrong.py:term")
    with pytest.raises(ValueError, match=f"'wrong.py:term' must give one number with a gradient .* got {got}$"):
        ByStatistics(settings, [teacher(0)], CPU)(jobs(settings, 6)[0])


@pytest.mark.parametrize("change", [{"objective": "gradients"}, {"iterations": 0}])
def test_it_needs_an_optimisation_that_it_could_be_part_of(change):
    with pytest.raises(ValueError, match=r"recover\.loss needs recover\.objective statistics and iterations, got"):
        recipe(loss="terms.py:margin", **change).check()


def test_a_loss_is_part_of_what_a_recipe_is():
    assert recipe().sha256() != recipe(loss="terms.py:margin").sha256()


def test_a_run_knows_the_file_of_its_images(folder, capsys):
    assert fastcondense("recover", folder / "run", "--recover.loss", "terms.py:none") == 1
    assert "recover.loss 'terms.py:none': terms.py has no function 'none'" in capsys.readouterr().err
    assert not (folder / "run" / "teachers").exists(), "a wrong name is told before anything is trained"
    command = ("recover", folder / "run", "--recover.loss", "terms.py:margin")
    assert FLAGS[1] == "sre2l/digits-ipc2" and fastcondense(*command) == 0
    made = shards(folder / "run")
    forget()
    (folder / "terms.py").write_text(MARGIN.replace("0.3", "0.4"))
    capsys.readouterr()
    assert fastcondense(*command) == 1
    assert "images of another recipe (recipe.loss_sha256 was" in capsys.readouterr().err
    assert shards(folder / "run") == made and len(made) == 4
