"""Relabel and train from the command line with many settings of labels: fingerprint, and a run that is cut short."""

import json
import shutil

import numpy as np
import pytest
import torch
from small import fastcondense

from fastcondense.data.datasets import load
from fastcondense.data.jobs import jobs
from fastcondense.data.real import Normalization
from fastcondense.files import read_json
from fastcondense.labels.views import ReplayedViews
from fastcondense.networks import fit, zoo
from fastcondense.recipe import recipe
from fastcondense.sets.condensed import read_set
from fastcondense.tensor_files import read_tensors

FAST = (
    "--squeeze.teachers zoo/convnet3_w32 zoo/convnet1 --squeeze.epochs 1 --squeeze.gate-images 0 "
    "--recover.iterations 1 --evaluate.baselines random_soft --train.seeds 1 --train.evaluate-every 1"
).split()
LABELS = (
    "--labels.batch-norm train --labels.batch-norm-size 6 --labels.priors 50 62 --labels.ensemble norm-equalized "
    "--labels.tile-shuffle 2 --labels.rand-augment 1 9 --labels.pool 0.6 --train.batch-size 12 --train.accumulate 2 "
    "--train.schedule multistep --train.milestones 0.5 --train.loss mse_ce --train.ce-labels own --train.ema 0.9"
).split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run up to trained students."""
    out = tmp_path_factory.mktemp("run") / "digits"
    assert [fastcondense(stage, out, *FAST, *LABELS) for stage in ("recover", "relabel", "train")] == [0, 0, 0]
    return out


def test_the_fingerprint_is_that_of_plain_networks_in_training_mode(finished):
    """Batches of 12 views in groups of 6, of which each teacher's BatchNorms take the statistics."""
    settings = recipe.from_toml((finished / "recipe.toml").read_text(), "recipe.toml")
    classes = load(settings.dataset, None).classes
    pixels, labels = read_set(finished / "condensed", jobs(settings, 10), 2, classes).flat()
    views = ReplayedViews(pixels, labels, settings.labels, Normalization.of(settings.dataset, torch.device("cpu")), 0)
    nets = [zoo.build(name, 10) for name in ("zoo/convnet3_w32", "zoo/convnet1")]
    for name, net in zip(("zoo-convnet3_w32", "zoo-convnet1"), nets, strict=True):
        net.load_state_dict(read_tensors(finished / "teachers" / name / "weights.safetensors")[0])
    weights, wanted = torch.softmax(torch.tensor([5.0, 6.2], dtype=torch.float64), 0), []
    for batch in (batch for epoch in (0, 3) for batch in views.epoch(epoch, settings.train)):
        with torch.no_grad():
            each = [torch.cat([net.train()(x) for x in batch.images.split(6)]).double() for net in nets]
        norms = torch.stack([logits.norm() for logits in each])
        wanted.append(sum(w * z / n * norms.mean() for w, z, n in zip(weights, each, norms, strict=True)))
    fingerprint = read_json(finished / "condensed" / "manifest.json")["fingerprint"]
    values, indices = torch.cat(wanted).topk(5, 1)
    np.testing.assert_allclose(fingerprint["logits"], values, atol=2e-4)
    assert fingerprint["classes"] == indices.tolist()


class Interruption(Exception):
    pass


@pytest.mark.parametrize("epochs", [2, 4])
def test_a_run_that_is_cut_short_ends_with_the_same_student(finished, tmp_path, monkeypatch, epochs):
    """In the middle, and between the last epoch and the end."""
    out, save, saved = tmp_path / "digits", fit._save, []
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns("students"))

    def interrupt(path, *state):
        save(path, *state)
        saved.append(path)
        if len(saved) == epochs:
            raise Interruption

    monkeypatch.setattr(fit, "_SECONDS_BETWEEN_CHECKPOINTS", 0)
    monkeypatch.setattr(fit, "_save", interrupt)
    with pytest.raises(Interruption):
        fastcondense("train", out, *FAST, *LABELS)
    assert fastcondense("train", out, *FAST, *LABELS) == 0
    again, whole = (next(folder.glob("students/*/condensed/seed0")) for folder in (out, finished))
    made, wanted = (read_tensors(folder / "weights.safetensors")[0] for folder in (again, whole))
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)
    made, wanted = (read_json(folder / "student.json")["classes"] for folder in (again, whole))
    assert made == wanted and sum(made["images"]) == 360
    entries = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in entries] == [1, 2, 3, 4]
    assert [entry["lr"] for entry in entries] == pytest.approx([entries[0]["lr"] * f for f in (1, 1, 0.1, 0.1)])
