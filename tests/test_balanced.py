"""BPS's choice of real images against loops, and the best real subset, which other training images choose."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from small import digits, fastcondense
from torch.nn import functional as F

from fastcondense.data.jobs import jobs
from fastcondense.files import read_json
from fastcondense.networks import zoo
from fastcondense.recipe import recipe
from fastcondense.recover.balanced import balanced, by_center, margin, noise_bounds, patterns
from fastcondense.recover.representatives import Rule, representatives
from fastcondense.rng import Stream
from fastcondense.run import Run
from fastcondense.sets.condensed import read_set
from fastcondense.students.arms import Arm
from fastcondense.students.best_subset import HELD_OUT, held_out
from fastcondense.students.costs import needed_bytes, student_views
from fastcondense.students.kept import read_choice, read_student, student_folder
from fastcondense.teachers.kept import read_teachers
from fastcondense.tensor_files import read_tensors


def blobs(sizes: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors in tight, far blobs of these sizes, in a mixed order, and which blob each is of."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    units = np.eye(len(sizes), 7)[labels] + random.normal(0, 0.05, (len(labels), 7))
    return units / np.linalg.norm(units, axis=1, keepdims=True), labels


def test_patterns_are_the_blobs():
    units, labels = blobs((31, 17, 40, 5, 9))
    found = patterns(units, 5)
    assert len(set(zip(found.tolist(), labels.tolist(), strict=True))) == 5
    assert (patterns(units, 5) == found).all()


def test_patterns_get_their_shares_and_each_gives_centres_and_margins_in_turns():
    sizes = (31, 17, 40, 5, 9)
    units, labels = blobs(sizes)
    entropies = np.random.default_rng(1).exponential(1, len(units))
    order = balanced(3.7 * units, entropies, len(units))
    assert sorted(order) == list(range(len(units)))
    for count in (1, 5, 10, 30):
        assert (balanced(3.7 * units, entropies, count) == order[:count]).all()  # a beginning is a choice of its own
        # Webster's method by its other definition: a divisor for which the rounded shares add up to the count
        shares = next(s for d in np.arange(1.5, 100, 1e-3) if (s := np.floor(np.divide(sizes, d) + 0.5)).sum() <= count)
        assert np.bincount(labels[order[:count]], minlength=5).tolist() == shares.tolist()
    for blob in range(5):
        own = np.flatnonzero(labels == blob)
        picked = [int(k) for k in order if labels[k] == blob]
        mean, left = units[own].mean(0), set(own.tolist())
        margins = [int(own[k]) for k in margin(entropies[own])]
        for turn, k in enumerate(picked):
            if turn % 2 == 0:
                assert k == max(left, key=lambda j: float(units[j] @ mean))
            else:
                assert k == next(j for j in margins if j in left)
            left.remove(k)


def test_the_margin_leaves_out_noise():
    """Sure answers, a margin around 1 and noise around 2: the bound is where scipy's two densities are equal."""
    random = np.random.default_rng(2)
    parts = random.normal(1, 0.1, 60), random.normal(2, 0.12, 40), random.uniform(0, 0.3, 900)
    entropies = random.permutation(np.concatenate(parts))
    low, high = noise_bounds(entropies)
    assert low == pytest.approx(parts[0].mean(), abs=0.02)
    at = np.linspace(1.2, 1.8, 60_001)
    fits = [part.size * stats.norm.pdf(at, part.mean(), part.std()) for part in parts[:2]]
    assert high == pytest.approx(at[np.abs(fits[0] - fits[1]).argmin()], abs=0.01)
    found = entropies[margin(entropies)]
    num_first, num_below = ((entropies >= low) & (entropies <= high)).sum(), (entropies < low).sum()
    assert found[0] == entropies[entropies >= low].min() and (np.diff(found[:num_first]) > 0).all()
    assert (np.diff(found[num_first : num_first + num_below]) < 0).all() and found[num_first] < low
    assert set(found[-40:]) == set(parts[1]) and (np.diff(found[-40:]) > 0).all()


def test_few_images_have_no_noise_and_equal_ones_an_order():
    entropies = np.array([0.3, 2.0, 0.1, 0.7])
    assert margin(entropies).tolist() == [1, 3, 0, 2]  # the least sure first
    assert sorted(margin(np.zeros(30))) == list(range(30))
    assert by_center(np.ones((4, 1))).tolist() == [0, 1, 2, 3]
    same = balanced(np.zeros((12, 3)), np.zeros(12), 12)
    assert sorted(same) == list(range(12))


def test_digits_are_chosen_by_the_teachers_features_and_entropies(finished):
    run = Run(recipe.load(str(finished / "recipe.toml")), finished)
    (path,) = finished.glob("teachers/*/weights.safetensors")
    net = zoo.build("zoo/convnet3_w32", 10)
    net.load_state_dict(read_tensors(path)[0])
    net.eval()
    pixels, labels = digits()
    x, caught = run.normalize(pixels[labels == 4]), []
    net.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        shares = F.softmax(net(x).double(), 1).numpy()
    expected = balanced(caught[0].double().numpy(), stats.entropy(shares, axis=1), 2)
    found = representatives(run, Rule("bps", read_teachers(run)[0]), 4, 2)
    assert found.tolist() == np.flatnonzero(labels == 4)[expected].tolist()


BEST = "--evaluate.baselines random_soft bps_soft best_soft".split()
RECIPE = "--recover.iterations 0 --recover.initial.kind bps".split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """BPS's digits as a set, beside the best real subset."""
    out = tmp_path_factory.mktemp("run") / "digits"
    for stage in ("recover", "train", "evaluate"):
        assert fastcondense(stage, out, *RECIPE, *BEST) == 0
    return out


def test_the_best_real_subset_is_chosen_on_other_training_images(finished):
    run = Run(recipe.load(str(finished / "recipe.toml")), finished)
    arm, teacher = Arm("best"), read_teachers(run)[0]
    choice = read_choice(run, arm)
    rules = ("herding", "medoid", "bps")
    chosen = [representatives(run, Rule(kind, teacher), label, 2) for kind in rules for label in range(10)]
    ids = held_out(run, chosen)
    assert choice["images"] == len(ids) == min(HELD_OUT, len(run.real.train) - len(np.unique(np.concatenate(chosen))))
    assert not np.isin(ids, np.concatenate(chosen)).any()
    order = Stream(run.recipe.seed, "baselines/held-out").permutation(len(run.real.train))
    assert (ids == order[np.isin(order, ids)]).all()
    pixels, labels = digits()
    top1 = {}
    for kind in rules:
        net = zoo.build("zoo/convnet1", 10)
        net.load_state_dict(read_tensors(student_folder(run, Arm(kind), 0) / "weights.safetensors")[0])
        with torch.no_grad():
            top1[kind] = 100 * (net.eval()(run.normalize(pixels[ids])).argmax(1) == labels[ids]).double().mean().item()
    assert choice["top1"] == pytest.approx(top1) and choice["chosen"] == max(rules, key=lambda kind: top1[kind])
    # one student of the others, and all seeds of the best, which are those of its own rule
    trained = {kind: len(list(student_folder(run, Arm(kind), 0).parent.glob("seed*"))) for kind in rules}
    assert trained == {kind: 2 if kind in ("bps", choice["chosen"]) else 1 for kind in rules}
    assert read_student(run, arm, 1) == read_student(run, Arm(choice["chosen"]), 1)


def test_its_scores_say_which_it_is_and_bps_is_the_set_itself(finished, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    result = read_json(finished / "result.json")
    found = result["baselines"]
    assert list(found) == ["random_soft", "bps_soft", "best_soft"]
    assert found["bps_soft"]["top1_last"] == result["top1_last"]
    (weights,) = finished.glob("teachers/*/weights.safetensors")
    pixels, teacher = 3 * 8 * 8, weights.stat().st_size
    assert {(of["views"], of["needs"]) for of in (result, *found.values())} == {(4 * 20, 20 * pixels + teacher)}
    run = Run(recipe.load(str(finished / "recipe.toml")), finished)
    assert found["best_soft"]["chosen"] == read_choice(run, Arm("best"))["chosen"]
    assert fastcondense("evaluate", finished, *RECIPE, *BEST) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"best real subset, soft labels ({found['best_soft']['chosen']})" in said


def test_what_students_on_all_real_images_cost(finished):
    """With hard labels they see every image in every epoch of squeeze and need no teacher; with soft ones the set's."""
    run = Run(recipe.load(str(finished / "recipe.toml")), finished)
    (weights,) = finished.glob("teachers/*/weights.safetensors")
    total, pixels = len(run.real.train), 3 * 8 * 8
    hard, soft = Arm("full", "hard"), Arm("full")
    assert (student_views(run, hard), needed_bytes(run, hard)) == (4 * total, total * pixels)
    assert (student_views(run, soft), needed_bytes(run, soft)) == (4 * 20, total * pixels + weights.stat().st_size)
    assert needed_bytes(run, Arm("random", "hard")) == 20 * pixels
    labels = dataclasses.replace(run.recipe.labels, source="own.py:labels")
    assert needed_bytes(Run(dataclasses.replace(run.recipe, labels=labels), finished), soft) == total * pixels


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--recover.initial.kind bps --recover.initial.space pixels", "bps needs a teacher, and recover.initial.space"),
        (
            "--squeeze.teachers --recover.objective gradients --labels.source hard --evaluate.baselines bps_soft",
            "evaluate.baselines bps_soft needs a teacher, and this recipe has none",
        ),
    ],
)
def test_bps_without_a_teacher_is_refused(tmp_path, capsys, flags, message):
    assert fastcondense("recover", tmp_path, *flags.split()) == 1
    assert message in capsys.readouterr().err


def test_a_subset_is_nested(finished):
    """The first image of each class is the set of one a class."""
    settings = recipe.load(str(finished / "recipe.toml"))
    out = finished.parent / "one"
    weights = next(finished.glob("teachers/*/weights.safetensors"))
    assert fastcondense("recover", out, *RECIPE, *BEST, "--ipc", "1", "--squeeze.weights", str(weights)) == 0
    classes = Run(settings, finished).real.classes
    two = read_set(finished / "condensed", jobs(settings, 10), 2, classes).images
    one = read_set(out / "condensed", jobs(dataclasses.replace(settings, ipc=1), 10), 1, classes).images
    assert torch.equal(two[:, :1], one)
