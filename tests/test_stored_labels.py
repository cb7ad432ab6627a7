"""Stored labels: equal to those on the fly, the k largest, what students learn from them, bytes, and FKD files."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from labelled_runs import FAST, changed, on_the_fly, stored, write_condensed
from small import fastcondense
from torch.nn import functional as F

from fastcondense.files import read_json
from fastcondense.labels.fkd import FKDViews, write_fkd
from fastcondense.labels.label_rows import compress, expand
from fastcondense.labels.labels import TeacherLabels
from fastcondense.labels.relabel import relabel
from fastcondense.labels.stored_labels import stored_bytes
from fastcondense.recipe.recipe import load
from fastcondense.tensor_files import read_tensors


@pytest.fixture(scope="module")
def condensed_run(tmp_path_factory):
    return write_condensed(tmp_path_factory.mktemp("run") / "digits")


@pytest.mark.parametrize(
    ("labels", "train"),
    [
        ({}, {}),
        ({"ensemble": "norm-equalized", "priors": (50.0, 62.0), "mix": "mixup"}, {"seeds": 2}),
        ({"batch_norm": "train", "batch_norm_size": 6, "pool": 0.4, "tile_shuffle": 2}, {}),
    ],
)
def test_stored_labels_are_those_on_the_fly_in_float16(condensed_run, tmp_path, labels, train):
    labels = labels | {"stored": str(tmp_path / "labels")}
    relabel(changed(condensed_run, labels, train))
    for seed in range(train.get("seeds", 1)):
        run = changed(condensed_run, labels, train)
        source, (views, teachers, _) = stored(run, seed), on_the_fly(run, seed)
        for epoch in (3, 0, 2, 1):  # 3 first, as after a resume
            for batch in views.epoch(epoch, run.recipe.train):
                wanted, mean = source(batch), teachers(batch).logits.mean(0)
                assert torch.equal(wanted.logits, mean.half()[None].float())
                assert (wanted.logits[0] - mean).norm() <= 2**-11 * mean.norm()
                for name in ("labels", "partners", "share"):
                    assert torch.equal(getattr(wanted, name), getattr(batch, name))


def test_a_share_of_a_batch_has_the_labels_of_its_views(condensed_run, tmp_path):
    """As a rank's share has."""
    run = changed(condensed_run, {"stored": str(tmp_path)})
    relabel(run)
    views, source = on_the_fly(run)[0], stored(run)
    batch = list(views.epoch(1, run.recipe.train))[1]
    part = dataclasses.replace(batch.span, begin=batch.span.begin + 3)
    assert torch.equal(source.logits(part), source.logits(batch.span)[3:])


@pytest.mark.parametrize(("pool", "rows"), [(1.0, [0, 20, 40, 60, 80]), (0.4, None)])
def test_only_views_that_are_seen_have_rows(condensed_run, tmp_path, pool, rows):
    """Two full batches of eight an epoch; 0.4 of the 8 of all epochs are three: two of epoch 0 and one of epoch 1."""
    run = changed(condensed_run, {"pool": pool, "stored": str(tmp_path)})
    relabel(run)
    if rows is None:
        views = on_the_fly(run)[0]
        seen = {span for epoch in range(4) for span in views.spans(epoch, run.recipe.train)}
        ends = [max((span.end for span in seen if span.epoch == epoch), default=0) for epoch in range(4)]
        assert ends[2:] == [0, 0] and ends[1] == 8
        rows = [0, *np.cumsum(ends).tolist()]
    assert read_json(tmp_path / "seed0" / "manifest.json")["first_rows"] == rows
    assert np.load(tmp_path / "seed0" / "logits.npy").shape == (rows[-1], 10)


# --- the k largest ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_classes", "top_k"), [(10, 1), (10, 9), (300, 5)])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_the_largest_keep_their_probabilities_and_the_others_share_the_rest(num_classes, top_k, temperature):
    torch.manual_seed(0)
    logits = 4 * torch.randn(6, num_classes)
    made = expand(**compress(logits, top_k, temperature), num_classes=num_classes).double()
    p, q = (F.softmax(z.double() / temperature, 1).numpy() for z in (logits, made))
    for row in range(6):
        largest = np.argsort(-p[row])[:top_k]
        np.testing.assert_allclose(q[row, largest], p[row, largest], rtol=0.02 / temperature + 1e-3)
        others = np.delete(q[row], largest)
        np.testing.assert_allclose(others, (1 - p[row, largest].sum()) / (num_classes - top_k), rtol=0.02)
        np.testing.assert_allclose(made[row, largest], logits[row, largest], rtol=2**-11)


def test_without_a_temperature_the_others_have_their_mean():
    torch.manual_seed(0)
    logits = torch.randn(4, 12)
    others = np.sort(logits.numpy(), 1)[:, :9].mean(1)
    for temperature in (None, 1e4):
        np.testing.assert_allclose(compress(logits, 3, temperature)["rest"], others, rtol=2e-3, atol=2e-3)


def test_logits_beyond_float16_are_refused():
    for top_k in (0, 1):
        with pytest.raises(ValueError, match="logits up to 70000 cannot be stored in float16"):
            compress(torch.tensor([[0.0, 70000.0, 1.0]]), top_k, 1.0)


def test_the_largest_alone_are_stored_and_read(condensed_run, tmp_path):
    run = changed(condensed_run, {"top_k": 3, "stored": str(tmp_path)})
    relabel(run)
    assert read_json(tmp_path / "seed0" / "manifest.json")["replay"]["temperature"] == run.recipe.train.temperature
    arrays = {path.stem: np.load(path) for path in tmp_path.glob("seed0/*.npy")}
    shapes = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    assert shapes == {"classes": ("uint16", (80, 3)), "logits": ("float16", (80, 3)), "rest": ("float16", (80,))}
    source, (views, teachers, _) = stored(run), on_the_fly(run)
    for batch in views.epoch(2, run.recipe.train):
        mean = teachers(batch).logits.mean(0)
        expected = expand(**compress(mean, 3, run.recipe.train.temperature), num_classes=10)
        assert torch.equal(source(batch).logits[0], expected)
        assert torch.equal(source(batch).logits[0].topk(3, 1).indices, mean.topk(3, 1).indices)
    with pytest.raises(ValueError, match="must be less than the 10 classes, got 10"):
        relabel(changed(condensed_run, {"top_k": 10, "stored": str(tmp_path)}))


@pytest.fixture(scope="module")
def labelled(condensed_run, tmp_path_factory):
    """The folder of the run's stored labels."""
    folder = tmp_path_factory.mktemp("labels")
    relabel(changed(condensed_run, {"stored": str(folder)}))
    return folder


# --- students --------------------------------------------------------------------------------------------------------


def students(out, arm):
    return sorted(out.glob(f"students/*/{arm}/seed0"), key=lambda path: path.stat().st_mtime)


def test_students_learn_from_stored_labels_what_they_learn_from_teachers(condensed_run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "digits"
    shutil.copytree(condensed_run, out)
    assert fastcondense("train", out, *FAST) == 0
    capsys.readouterr()
    assert fastcondense("relabel", out, *FAST, "--store") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("relabel: 1,600 bytes of labels, of 80 views, in ") for line in lines)
    assert load(str(out / "recipe.toml")).labels.source == "teachers"  # a run's recipe stays
    labelled, plain = [], TeacherLabels.logits
    monkeypatch.setattr(TeacherLabels, "logits", lambda *args: labelled.append(args) or plain(*args))
    assert fastcondense("train", out, *FAST, "--store") == 0
    assert len(labelled) == 12  # the baseline's batches: four epochs of three
    states = [read_tensors(path / "weights.safetensors")[0] for path in students(out, "condensed")]
    assert len(states) == 2
    for name, weights in states[0].items():
        change = (weights.double() - states[1][name].double()).norm()
        assert change <= 1e-3 * (weights.double().norm() + 1e-3)
    assert fastcondense("evaluate", out, *FAST, "--store") == 0
    result = json.loads((out / "result.json").read_text())
    size = sum(path.stat().st_size for path in (out / "labels" / "seed0").iterdir())
    assert result["labels"] == "stored" and result["bytes"]["labels"] == size > 1600


def test_students_of_hard_labels_need_no_teacher(condensed_run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "digits"
    shutil.copytree(condensed_run, out)
    monkeypatch.setattr(TeacherLabels, "logits", None)
    flags = [*FAST, "--labels.source", "hard", "--evaluate.baselines", "random_hard"]
    assert fastcondense("train", out, *flags) == fastcondense("evaluate", out, *flags) == 0
    assert "condensed, hard labels" in capsys.readouterr().out
    history = read_json(students(out, "condensed")[0] / "student.json")["history"]
    assert 1.5 < history[0]["loss"] < 2 * math.log(10)  # cross-entropy; the divergence of soft labels is below 0.1


# --- FKD -------------------------------------------------------------------------------------------------------------


def test_a_run_writes_fkd_files_and_its_students_read_them(condensed_run, tmp_path, capsys):
    out, folder = tmp_path / "digits", tmp_path / "fkd"
    shutil.copytree(condensed_run, out)
    run = changed(out, {"source": "teachers"})
    assert write_fkd(run, folder, 4) == sum(path.stat().st_size for path in folder.rglob("*.tar"))
    assert sorted(path.name for path in folder.iterdir()) == [f"epoch_{epoch}" for epoch in range(4)]
    for path in folder.rglob("*.tar"):  # torch's own reader takes ours
        coords, flip, partner, lam, box, logits = torch.load(path)
        assert (coords.dtype, flip.dtype, partner.dtype) == (torch.float32, torch.bool, torch.int64)
        assert logits.dtype == torch.float16 and 0 < lam < 1 and [type(x) for x in box] == [int] * 4

    views, source, _ = on_the_fly(run)
    read = FKDViews(folder, views, 10)
    for batch in read.epoch(3, run.recipe.train):
        mean = source(batch).logits.mean(0)
        torch.testing.assert_close(read.wanted(batch).logits[0], mean, rtol=2e-3, atol=2e-3)

    with pytest.raises(ValueError, match="is not empty; FKD files need a folder of their own"):
        write_fkd(run, folder, 4)
    more = ["--labels.source", "stored", "--labels.stored", str(folder)]
    assert [fastcondense(stage, out, *FAST, *more) for stage in ("relabel", "train", "evaluate")] == [0, 0, 0]
    said = capsys.readouterr().out
    assert f"relabel: the labels are the FKD files in {folder}" in said and "order of torch's sampler; " in said
    result = json.loads((out / "result.json").read_text())
    assert result["bytes"]["labels"] == stored_bytes(changed(out, {"stored": str(folder)})) > 4 * 20 * 2 * 10


def test_our_form_is_smaller_than_fkd_files(condensed_run, labelled, tmp_path):
    """Of the same views: 2 bytes a logit and a header, against 25 more a view and a container a batch."""
    write_fkd(changed(condensed_run, {"source": "teachers"}), tmp_path / "fkd", 4)
    fkd = sum(path.stat().st_size for path in (tmp_path / "fkd").rglob("*.tar"))
    assert (labelled / "seed0" / "logits.npy").stat().st_size == 80 * 20 + 128
    assert fkd > 80 * (20 + 25) + 12 * 1000


def test_unmixed_views_have_identities_in_fkd_files(condensed_run, tmp_path):
    run = changed(condensed_run, {"source": "teachers", "mix": "none"})
    write_fkd(run, tmp_path / "fkd", 1)
    views, source, _ = on_the_fly(run)
    read = FKDViews(tmp_path / "fkd", views, 10)
    assert read.settings.mix == "none"
    for batch in read.epoch(0, run.recipe.train):
        assert torch.equal(read.wanted(batch).logits, source(batch).logits.mean(0).half()[None].float())
    fields = torch.load(tmp_path / "fkd" / "epoch_0" / "batch_2.tar")
    assert fields[2].tolist() == [0, 1, 2, 3] and fields[3:5] == [1.0, [0, 0, 0, 0]]
