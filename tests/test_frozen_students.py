"""Linear probes as students: their features, baselines that real images are chosen by, and a run from end to end."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastcondense.cli import main
from fastcondense.data.real import squares
from fastcondense.recipe.recipe import from_toml, load
from fastcondense.recover.feature_targets import backbone_of
from fastcondense.run import Run
from fastcondense.statistics.class_directions import class_directions
from fastcondense.students.arms import CONDENSED
from fastcondense.students.closest import closest_images
from fastcondense.students.frozen import FrozenStudent
from fastcondense.students.kept import student_folder
from fastcondense.teachers.kept import read_teachers, teacher_path
from fastcondense.tensor_files import read_tensors

FLAGS = (
    "--recipe means/digits --squeeze.teachers zoo/convnet3_w32 zoo/convnet3_w64 --squeeze.epochs 8 --recover.teachers "
    "zoo/convnet3_w32 --train.student zoo/convnet3_w32 --train.epochs 60 --train.seeds 2 --recover.iterations 120 "
    "--evaluate.full-epochs 4 --device cpu"
).split()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen") / "run"
    assert main(["run", *FLAGS, "--out", str(folder)]) == 0
    return folder


def opened(out):
    return Run(load(str(out / "recipe.toml")), out)


def test_probes_are_scored_beside_every_baseline(out):
    """The digits are no case for it: a network trained on them is read from any image. Chance is 10."""
    result = json.loads((out / "result.json").read_text())
    scores = {name: of["top1_last"]["mean"] for name, of in result["baselines"].items()}
    assert list(scores) == ["random_hard", "nearest", "aligned", "full"]
    own = result["top1_last"]["mean"]
    assert own > 50 and scores["full"] > 90
    real, weights = len(opened(out).real.train), teacher_path(out, "zoo/convnet3_w32").stat().st_size
    assert (result["views"], result["needs"]) == (60 * 10 * 20, 10 * 3 * 8 * 8 + weights)
    whole = result["baselines"]["full"]
    assert (whole["views"], whole["needs"]) == (4 * 2 * real, real * 3 * 8 * 8 + weights)
    assert result["labels"] == "hard" and "nearest" in (out / "report.html").read_text()


def test_a_second_backbone_is_probed_on_the_same_images(out, capsys):
    flags = ["--train.student", "zoo/convnet3_w64"]
    assert main(["train", str(out), *flags, "--device", "cpu"]) == 0
    assert main(["evaluate", str(out), *flags, "--device", "cpu"]) == 0
    assert "all 2 evaluations of its images" in capsys.readouterr().out
    results = [json.loads(path.read_text()) for path in sorted((out / "results").glob("*.json"))]
    assert {one["student"] for one in results} == {"zoo/convnet3_w32", "zoo/convnet3_w64"}


def test_a_probe_reads_the_features_of_its_teacher_alone(out):
    run = opened(out)
    teacher = read_teachers(run)[0]
    frozen = FrozenStudent.of(run)
    pixels, _ = squares(run.real.test, run.recipe.dataset, run.device)
    torch.testing.assert_close(frozen.test.vectors, backbone_of(teacher, "fp32")(run.normalize(pixels)))
    state, _ = read_tensors(student_folder(run, CONDENSED, 0) / "weights.safetensors")
    assert {name: tensor.shape for name, tensor in state.items()} == {"weight": (10, 32), "bias": (10,)}
    logits = F.linear(frozen.test.vectors, state["weight"], state["bias"])
    top1 = 100 * float((logits.argmax(1) == frozen.test.labels).float().mean())
    (path,) = (out / "results").glob("zoo-convnet3_w32*.json")  # result.json is the latest, of whichever student
    result = json.loads(path.read_text())
    assert top1 == pytest.approx(result["top1_last"]["seeds"][0])


def test_views_are_the_recipes_and_all_real_images_are_seen_twice(out):
    run = opened(out)
    frozen = FrozenStudent.of(run)
    pixels, labels = run.real_images(1, "some", 0)
    seen = frozen.views(pixels, labels, 3)
    assert seen.vectors.shape == (200, 32) and torch.equal(seen.labels, labels.repeat(20))
    assert len(seen.vectors.unique(dim=0)) > 50  # 10 images; scans of 8 pixels have few crops of 0.8 and more
    assert torch.equal(seen.vectors, frozen.views(pixels, labels, 3).vectors)
    assert not torch.equal(seen.vectors, frozen.views(pixels, labels, 4).vectors)
    assert frozen.real.labels.bincount().tolist() == (2 * np.bincount(run.real.train.labels)).tolist()


def test_nearest_and_aligned_are_what_they_say(out):
    run = opened(out)
    teacher = read_teachers(run)[0]
    see, (wanted,) = backbone_of(teacher, "fp32"), class_directions(run, [teacher])
    pixels, ids = squares(run.real.train, run.recipe.dataset, run.device)
    features, known = see(run.normalize(pixels)), torch.from_numpy(run.real.train.labels[ids.numpy()])
    unread, labels = closest_images(run, "nearest", 2)
    images = unread.read()
    assert labels.tolist() == sorted([*range(10)] * 2)
    for k in range(10):
        gaps = (features - features[known == k].mean(0)).norm(dim=1).masked_fill(known != k, torch.inf)
        assert torch.equal(images[2 * k], pixels[int(gaps.argmin())])
    frozen = FrozenStudent.of(run)

    def cosine(pixels):
        """Of the mean features of other views than those that the choice was made by, averaged over classes."""
        made = frozen.views(pixels, torch.arange(10), 7).vectors.unflatten(0, (-1, 10)).mean(0)
        return float(F.cosine_similarity(made - wanted.centre, wanted.of_slots[:, 0], 1).mean())

    aligned = cosine(closest_images(run, "aligned", 1)[0])
    random = [cosine(run.real_images(1, "some", seed)[0]) for seed in range(5)]
    assert aligned > cosine(closest_images(run, "nearest", 1)[0]) and aligned > max(random)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('labels.mix = "cutmix"', "train.frozen needs labels.source hard, labels.mix none, and views of crops"),
        (
            'evaluate.baselines = ["random_soft"]',
            "train.frozen needs evaluate.baselines with hard labels, got 'random_soft'",
        ),
    ],
)
def test_what_a_frozen_student_cannot_have_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        from_toml(f'extends = ["digits/common", "means/common"]\nrecover.pyramid.every = 25\n{text}', "some")
