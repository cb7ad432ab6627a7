"""DD-Ranking's scores: formulas against ddranking itself, arms image by image, and a whole ranking recomputed."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from small import fastcondense

from fastcondense.files import read_json
from fastcondense.networks import zoo
from fastcondense.recipe import recipe
from fastcondense.recipe.evaluation import student_parts
from fastcondense.recipe.settings import Ranking
from fastcondense.recover.stage import condensed_set
from fastcondense.run import Run
from fastcondense.squeeze.stage import squeeze
from fastcondense.students import students
from fastcondense.students.arms import BASELINES, CONDENSED, Arm
from fastcondense.students.ranking import augmentation_robust_score, label_robust_score, normalized
from fastcondense.tensor_files import read_tensors

FAST = (
    "--squeeze.teachers zoo/convnet1 --squeeze.epochs 1 --squeeze.gate-images 0 --recover.iterations 1 "
    "--evaluate.full-epochs 1 --train.epochs 2 --train.batch-size 10 --train.evaluate-every 1 --train.lr 0.01"
).split()
RATES = "--ranking.learning-rates 0.01 0.3 1e30".split()


def test_the_scores_by_hand():
    assert normalized(-1) == 0 and normalized(1) == 1
    assert normalized(0) == pytest.approx(0.2689414213699951, rel=1e-15)  # 1 / (1 + e)
    low, span = 0.36787944117144233, 2.3504023872876028
    # -0.25 = 0.25 * 0.2 - 0.75 * 0.4, and its exponential
    assert label_robust_score(0.4, 0.2, 0.25) == pytest.approx((0.7788007830714049 - low) / span, rel=1e-14)
    # 0.1 = 0.5 * 0.3 - 0.5 * 0.1
    assert augmentation_robust_score(0.3, -0.1) == pytest.approx((1.1051709180756477 - low) / span, rel=1e-14)


def test_the_scores_are_those_of_ddranking():
    """What its version 0.2.0 gave for these accuracies: real hard, condensed hard, condensed, random."""
    assert label_robust_score(0.855 - 0.31, 0.602 - 0.553, 0.3) == pytest.approx(0.13830345876827027, rel=1e-12)
    assert label_robust_score(0.855 - 0.31, 0.31 - 0.283) == pytest.approx(0.17186145830051583, rel=1e-12)
    wanted = 0.26302649556310737
    assert augmentation_robust_score(0.602 - 0.553, 0.44 - 0.475, 0.25) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("weight", [0, 0.3, 0.5, 1])
def test_the_scores_are_those_of_an_installed_ddranking(weight, monkeypatch):
    """Its own arithmetic, on accuracies that are fractions, in place of those that it would measure in per cent."""
    metrics = pytest.importorskip("ddranking.metrics")

    def compute(kind, accuracies, **weights):
        metric, given = object.__new__(kind), iter(accuracies)
        for label in ("hard_label", "soft_label", "with_aug", "without_aug"):
            name = f"_compute_{label}_metrics_helper"
            monkeypatch.setattr(metric, name, lambda **_: (next(given), 0.1), raising=False)
        num_random = 4 if kind is metrics.AugmentationRobustScore else 3
        monkeypatch.setattr(metric, "_get_random_data_helper", lambda **_: (None,) * num_random)
        monkeypatch.setattr(f"{kind.__module__}.save_results", lambda *_: None)
        settings = {"num_eval": 1, "ipc": 1, "num_classes": 2, "use_dist": False, "rank": 0, "eval_full_data": True}
        vars(metric).update(settings, soft_label_mode="M", label_type="soft", save_path=None)
        return metric.compute_metrics(image_tensor=torch.zeros(2, 3, 8, 8), **weights)

    condensed_hard, real_hard, condensed, random = accuracies = (0.31, 0.855, 0.602, 0.553)
    found = compute(metrics.LabelRobustScoreSoft, accuracies, lrs_lambda=weight)["label_robust_score_mean"]
    wanted = label_robust_score(real_hard - condensed_hard, condensed - random, weight)
    assert found == pytest.approx(wanted, rel=1e-12)
    found = compute(metrics.LabelRobustScoreHard, accuracies[:3], lrs_lambda=weight)["label_robust_score_mean"]
    wanted = label_robust_score(real_hard - condensed_hard, condensed_hard - condensed, weight)
    assert found == pytest.approx(wanted, rel=1e-12)
    found = compute(metrics.AugmentationRobustScore, accuracies, ars_lambda=weight)["augmentation_robust_score_mean"]
    wanted = augmentation_robust_score(accuracies[0] - accuracies[1], condensed - random, weight)
    assert found == pytest.approx(wanted, rel=1e-12)


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    """A run with its ranking: two seeds, two learning rates, and one with which nothing can be learned."""
    out = tmp_path_factory.mktemp("run") / "digits"
    assert fastcondense("recover", out, *FAST) == 0
    assert fastcondense("rank", out, *FAST, *RATES) == 0
    return out


def test_arms_have_names_of_their_own_and_keep_the_old_ones():
    images = ("condensed", "random", "herding", "medoid", "bps", "best", "full")
    every = [Arm(*which) for which in product(images, ("soft", "hard"), ("recipe", "plain"))]
    every += [replace(arm, lr=0.5) for arm in every]
    assert len({arm.name for arm in every}) == len(every) == 56
    names = {"random_soft", "random_hard", "herding_soft", "herding_hard", "nearest", "aligned", "full_soft", "full"}
    names |= {"medoid_soft", "bps_soft", "best_soft"}
    assert CONDENSED.name == "condensed" and set(BASELINES) == names
    assert Arm("random", "hard", "plain", 1e-5).name == "random_hard_plain_lr1e-05"


@pytest.mark.parametrize(
    ("images", "labels"),
    [("full", "hard"), *product(("condensed", "random"), ("soft", "hard"))],  # full_soft: tests/test_results.py
)
def test_a_plain_arm_shows_every_image_as_it_is(ranked, images, labels):
    run = Run(recipe.load(str(ranked / "recipe.toml")), ranked)
    condensed, teachers = condensed_set(run), squeeze(run)
    if images == "full":
        pixels, classes = run.real.train.images.transpose(0, 3, 1, 2), run.real.train.labels
    else:
        chosen = condensed.flat() if images == "condensed" else run.real_images(2, "baselines/random", 5)
        pixels, classes = (tensor.numpy() for tensor in chosen)
    mean, std = (np.array(x)[:, None, None] for x in (run.recipe.dataset.mean, run.recipe.dataset.std))

    task = students.task_of(run, Arm(images, labels, "plain", 0.25), 5, condensed, teachers)
    assert task.optimization.lr == 0.25 and task.optimization.epochs == (1 if images == "full" else 2)
    views, answers, _ = zip(*(task.make(item) for item in task.batches(1)), strict=True)
    values = 255 * (torch.cat(views).double().numpy() * std + mean)
    np.testing.assert_allclose(values, values.round(), atol=1e-3)
    seen = [(image.tobytes(), int(label)) for image, label in zip(pixels, classes, strict=True)]
    shown = torch.cat([answer.labels for answer in answers]).tolist()
    found = [image.tobytes() for image in values.round().astype(np.uint8)]
    assert sorted(zip(found, shown, strict=True)) == sorted(seen)
    assert all(bool((answer.share == 1).all()) for answer in answers)

    net = zoo.build("zoo/convnet1", 10)
    net.load_state_dict(read_tensors(ranked / "teachers" / "zoo-convnet1" / "weights.safetensors")[0])
    logits = torch.linspace(-1, 1, 10).repeat(len(views[0]), 1)
    if labels == "hard":
        assert all(answer.logits is None for answer in answers)
        truth = torch.nn.functional.cross_entropy(logits.double(), answers[0].labels)
    else:
        with torch.no_grad():
            soft = net.eval()(views[0]).double()
        torch.testing.assert_close(answers[0].logits[0].double(), soft, atol=1e-4, rtol=1e-4)
        temperature = run.recipe.train.temperature
        p, log_q = torch.softmax(soft / temperature, 1), torch.log_softmax(logits.double() / temperature, 1)
        truth = (p * (p.log() - log_q)).sum(1).mean()
    assert float(task.loss(logits, answers[0])) == pytest.approx(float(truth), rel=1e-4)


@pytest.mark.parametrize("lr", [None, 0.25])
def test_condensed_images_have_the_recipes_labels_at_every_learning_rate(ranked, lr):
    settings = recipe.load(str(ranked / "recipe.toml"))
    run = Run(replace(settings, labels=replace(settings.labels, source="hard")), ranked)
    for images, is_hard in (("condensed", True), ("random", False)):
        task = students.task_of(run, Arm(images, lr=lr), 5, condensed_set(run), squeeze(run))
        assert (task.make(next(iter(task.batches(0)))).wanted.logits is None) == is_hard


def history(ranked: Path, arm: str, seed: int) -> list[float]:
    """Top-1 of a student, epoch by epoch."""
    (path,) = ranked.glob(f"students/*/{arm}/seed{seed}/metrics.jsonl")
    return [json.loads(line)["top1"] for line in path.read_text().splitlines()]


def test_the_ranking_is_that_of_its_students(ranked):
    """The best of two learning rates a seed, then the formulas in numpy."""
    arms = "full_plain condensed_hard_plain condensed random_soft condensed_plain random_soft_plain".split()
    result = read_json(ranked / "ranking.json")
    assert list(result["arms"]) == arms and result["seeds"] == 2
    for epoch, choose in (("top1_last", lambda values: values[-1]), ("top1_best", max)):
        top1 = {}
        for arm in arms:
            rates = {0.003: ""} if arm == "full_plain" else {0.01: "", 0.3: "_lr0.3"}
            table = np.array(
                [[choose(history(ranked, arm + rate, seed)) for seed in (0, 1)] for rate in rates.values()]
            )
            top1[arm] = table.max(0)
            found = result["arms"][arm][epoch]
            assert found["seeds"] == top1[arm].tolist()
            rows = [list(rates).index(lr) for lr in found["lr"]]
            assert table[rows, [0, 1]].tolist() == found["seeds"]
            assert found["mean"] == pytest.approx(top1[arm].mean())
            assert found["std"] == pytest.approx(top1[arm].std(ddof=1))
        real, hard, soft, random, plain, random_plain = (top1[arm] / 100 for arm in arms)
        alpha = 0.5 * (soft - random) - 0.5 * (real - hard)
        beta = 0.5 * (soft - random) + 0.5 * (plain - random_plain)
        wanted = {
            "hard_label_recovery": 100 * (real - hard),
            "improvement_over_random": 100 * (soft - random),
            "improvement_over_random_plain": 100 * (plain - random_plain),
            "label_robust_score": (np.exp(alpha) - np.exp(-1)) / (np.e - np.exp(-1)),
            "augmentation_robust_score": (np.exp(beta) - np.exp(-1)) / (np.e - np.exp(-1)),
        }
        scores = result["scores"][epoch]
        assert set(scores) == set(wanted)
        for name, values in wanted.items():
            np.testing.assert_allclose(scores[name]["seeds"], values, atol=1e-12)
            assert scores[name]["mean"] == pytest.approx(values.mean(), abs=1e-12)
            assert scores[name]["std"] == pytest.approx(values.std(ddof=1), abs=1e-12)
    assert len({values["mean"] for values in result["scores"]["top1_last"].values()}) == 5


def test_a_learning_rate_that_diverges_is_left_out_and_said(ranked, capsys):
    lines = [json.loads(line).get("text", "") for line in (ranked / "log.jsonl").read_text().splitlines()]
    left_out = [line for line in lines if "with learning rate 1e+30 is left out: training diverged" in line]
    assert len(left_out) == 5
    assert fastcondense("rank", ranked, *FAST, "--ranking.learning-rates", "1e30") == 1
    assert "all ranking.learning_rates diverged on condensed_hard_plain" in capsys.readouterr().err


def test_a_second_ranking_trains_what_is_missing_alone(ranked, monkeypatch, capsys):
    """Evaluate's students are shared, and so are those of other settings of the ranking."""
    trained, fit = [], students.fit

    def watch(*arguments, **options):
        trained.append(arguments[6].parent.parent.name)
        return fit(*arguments, **options)

    monkeypatch.setattr(students, "fit", watch)
    rates = ("--ranking.learning-rates", "0.01", "0.3")
    before = read_json(ranked / "ranking.json")
    assert fastcondense("rank", ranked, *FAST, *rates) == 0 and not trained
    again = read_json(ranked / "ranking.json")
    assert again["scores"] == before["scores"] and again["arms"] == before["arms"]
    assert "label-robust score" in (table := capsys.readouterr().out)
    score = before["scores"]["top1_last"]["label_robust_score"]
    assert f"{score['mean']:.3f} ± {score['std']:.3f}" in table

    hard = ("--ranking.labels", "hard", "--ranking.real-accuracy", "97")
    assert fastcondense("rank", ranked, *FAST, *hard) == 0
    assert sorted(trained) == [arm for arm in ("condensed_hard", "random_hard", "random_hard_plain") for _ in (0, 1)]
    result = read_json(ranked / "ranking.json")
    assert result["arms"]["full_plain"]["top1_last"]["seeds"] == [97, 97]
    for seed in (0, 1):
        scores = {name: values["seeds"][seed] for name, values in result["scores"]["top1_best"].items()}
        condensed = max(history(ranked, "condensed_hard", seed))
        plain = max(history(ranked, "condensed_hard_plain", seed))
        assert scores["hard_label_recovery"] == pytest.approx(97 - plain)
        assert scores["improvement_over_random"] == pytest.approx(condensed - max(history(ranked, "random_hard", seed)))
    assert "all real images, hard labels (given)" in capsys.readouterr().out

    trained.clear()
    assert fastcondense("train", ranked, *FAST, "--evaluate.baselines", "random_soft", "random_hard") == 0
    assert not trained


def test_settings_of_the_ranking_change_no_hash_and_are_checked():
    base = recipe.load("sre2l/digits-ipc10")
    other = replace(base, ranking=Ranking(labels="hard", learning_rates=(0.1,)))
    assert base.sha256() == other.sha256() and student_parts(base, is_full=True) == student_parts(other, is_full=True)
    assert recipe.from_toml(other.to_toml(), "other") == other
    for wrong in (
        "real_accuracy = 101.0",
        "learning_rates = [0.0]",
    ):
        with pytest.raises(ValueError, match=f"ranking.{wrong.split()[0]}"):
            recipe.from_toml(f"[ranking]\n{wrong}", "mine.toml")
