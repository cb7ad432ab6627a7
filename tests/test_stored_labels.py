"""Stored labels: equal to those on the fly, the k largest, interruptions, what is refused, bytes, and FKD files."""

import dataclasses
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import fastcondense
from torch.nn import functional as F

from fastcondense.files import read_json
from fastcondense.labels import stored_labels
from fastcondense.labels.fkd import FKDViews, write_fkd
from fastcondense.labels.labels import TeacherLabels
from fastcondense.labels.relabel import relabel
from fastcondense.labels.stored_labels import compress, expand, read_labels, replay_specification, stored_bytes
from fastcondense.labels.views import ReplayedViews
from fastcondense.recipe.recipe import load
from fastcondense.recover.stage import condensed_set
from fastcondense.run import Run
from fastcondense.sets.condensed import CondensedSet
from fastcondense.squeeze.stage import squeeze
from fastcondense.teachers.kept import chosen
from fastcondense.tensor_files import read_tensors

FAST = (
    "--squeeze.teachers zoo/convnet3_w32 zoo/convnet1 --squeeze.epochs 2 --squeeze.gate-images 0 "
    "--recover.iterations 20 --train.seeds 1 --train.evaluate-every 4 --evaluate.baselines random_soft"
).split()


@pytest.fixture(scope="module")
def condensed_run(tmp_path_factory):
    """A run with teachers and condensed images; 20 of them, in batches of 8, 8 and 4."""
    out = tmp_path_factory.mktemp("run") / "digits"
    assert fastcondense("recover", out, *FAST) == 0
    return out


def changed(out, labels=None, train=None, **more):
    """The run in that folder with other settings, in a process that has read nothing yet."""
    recipe = load(str(out / "recipe.toml"))
    labels = dataclasses.replace(recipe.labels, **{"source": "stored"} | (labels or {}))
    recipe = dataclasses.replace(recipe, labels=labels, train=dataclasses.replace(recipe.train, **train or {}), **more)
    run = Run(recipe, out)
    run.open()
    return run


def on_the_fly(run, seed=0):
    """The views, and the labels of teachers that were read anew."""
    teachers = chosen(squeeze(run), run.recipe.labels.teachers)
    pixels, labels = condensed_set(run).flat()
    views = ReplayedViews(pixels, labels, run.recipe.labels, run.normalize, seed)
    return views, TeacherLabels(teachers, run.recipe.labels, seed), teachers


def stored(run, seed=0):
    views, _, teachers = on_the_fly(run, seed)
    return read_labels(run, condensed_set(run), views, teachers, seed)[1]


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


# --- interruptions and refusals --------------------------------------------------------------------------------------


class Interruption(Exception):
    pass


def test_a_run_that_is_cut_short_goes_on_after_its_last_epoch(condensed_run, tmp_path, monkeypatch):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    relabel(changed(condensed_run, {"stored": str(tmp_path / "whole")}))
    calls, plain = [], compress

    def counted(*arguments):
        calls.append(arguments)
        if len(calls) == 8:  # three batches an epoch: in the middle of the third
            raise Interruption
        return plain(*arguments)

    monkeypatch.setattr(stored_labels, "compress", counted)
    cut = {"stored": str(tmp_path / "cut")}
    with pytest.raises(Interruption):
        relabel(changed(condensed_run, cut))
    assert read_json(tmp_path / "cut" / "seed0" / "manifest.json")["epochs_done"] == 2
    with pytest.raises(ValueError, match=r"is not finished \(2 of 4 epochs\); run relabel --store again"):
        stored(changed(condensed_run, cut))
    for epochs in (4, 4, 3):  # the other two epochs, then none
        relabel(changed(condensed_run, cut, {"epochs": epochs}))
        assert len(calls) == 8 + 6
    stored(changed(condensed_run, cut, {"epochs": 3}))
    for name in ("logits.npy", "manifest.json"):
        one, other = (tmp_path / part / "seed0" / name for part in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes()


@pytest.fixture(scope="module")
def labelled(condensed_run, tmp_path_factory):
    """The folder of the run's stored labels."""
    folder = tmp_path_factory.mktemp("labels")
    relabel(changed(condensed_run, {"stored": str(folder)}))
    return folder


@pytest.mark.parametrize(
    ("labels", "train", "more", "message"),
    [
        ({"mix": "none"}, {}, {}, r"something else \(labels.mix was \"cutmix\", now \"none\"\)"),
        ({"top_k": 2}, {}, {}, "labels.top_k was 0, now 2"),
        ({"pool": 0.5}, {}, {}, "labels.pool was 1.0, now 0.5"),
        ({"teachers": ("zoo/convnet1",)}, {}, {}, "labels.teachers"),
        ({"ensemble": "norm-equalized"}, {}, {}, "labels.ensemble"),
        ({}, {"epochs": 5}, {}, "labels of 4 epochs, (but|and) train.epochs is 5"),
    ],
)
def test_labels_of_something_else_are_refused(condensed_run, labelled, labels, train, more, message):
    before = (labelled / "seed0" / "logits.npy").read_bytes()
    run = changed(condensed_run, labels | {"stored": str(labelled)}, train, **more)
    for use in (stored, relabel):
        with pytest.raises(ValueError, match=message):
            use(run)
    assert (labelled / "seed0" / "logits.npy").read_bytes() == before


def test_labels_of_another_set_seed_or_teacher_are_refused(condensed_run, labelled):
    run = changed(condensed_run, {"stored": str(labelled)})
    condensed, (views, _, teachers) = condensed_set(run), on_the_fly(run)
    flipped = CondensedSet(condensed.images.flip(-1), condensed.classes)
    renamed = CondensedSet(condensed.images, condensed.classes[::-1])
    other = [dataclasses.replace(teachers[0], sha256="0" * 64), teachers[1]]
    for arguments, message in (
        ((flipped, views, teachers, 0), "images_sha256 was"),
        ((renamed, views, teachers, 0), "classes was"),
        ((condensed, views, other, 0), "teachers.zoo/convnet3_w32 was"),
        ((condensed, views, teachers, 1), "no stored labels .*seed1.*; write them with relabel --store"),
    ):
        with pytest.raises(ValueError, match=message):
            read_labels(run, *arguments)
    shutil.copytree(labelled / "seed0", labelled / "seed1")
    with pytest.raises(ValueError, match="seed was 0, now 1"):
        read_labels(run, condensed, views, teachers, 1)
    shutil.rmtree(labelled / "seed1")


@pytest.mark.parametrize(
    ("labels", "train", "decides"),
    [
        ({}, {"batch_size": 5}, False),
        ({"pool": 0.5}, {"batch_size": 5}, True),
        ({"pool": 0.5}, {"epochs": 3}, True),
        ({}, {"epochs": 3}, False),
        ({"ensemble": "norm-equalized"}, {"batch_size": 5}, True),
        ({"batch_norm": "train", "batch_norm_size": 4}, {"batch_size": 12}, False),  # whole groups in 8 and in 12
        ({"batch_norm": "train", "batch_norm_size": 4}, {"batch_size": 6}, True),
        ({"top_k": 2}, {"temperature": 3.0}, True),
        ({}, {"temperature": 3.0}, False),
        ({"top_k": 2}, {"loss": "mse_ce"}, True),
    ],
)
def test_batches_epochs_and_temperature_count_where_labels_depend_on_them(labels, train, decides):
    recipe = load("sre2l/digits-ipc2")
    recipe = dataclasses.replace(recipe, labels=dataclasses.replace(recipe.labels, source="stored", **labels))
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, batch_size=8))
    other = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, **train))
    teachers = [SimpleNamespace(name="t", sha256="0")]
    one, two = (json.dumps(replay_specification(r, ("a", "b"), "digest", teachers, 0)) for r in (recipe, other))
    assert (one != two) == decides


def test_a_damaged_array_is_named(condensed_run, labelled, tmp_path):
    shutil.copytree(labelled, tmp_path / "copy")
    path, run = tmp_path / "copy" / "seed0" / "logits.npy", changed(condensed_run, {"stored": str(tmp_path / "copy")})
    whole = path.read_bytes()
    for content, message in ((whole[:-50], "cannot be read"), (b"", "cannot be read")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"logits\.npy {message}"):
            stored(run)
    np.save(path, np.zeros((3, 10), np.float16))
    with pytest.raises(ValueError, match=r"logits\.npy is damaged: float16 \(3, 10\), not \(80, 10\)"):
        stored(run)
    path.unlink()
    with pytest.raises(ValueError, match=r"logits\.npy cannot be read"):
        stored(run)


def test_bytes_are_said_first_and_must_fit(condensed_run, tmp_path, monkeypatch, capsys):
    usage = SimpleNamespace(free=1599)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    run = changed(condensed_run, {"stored": str(tmp_path)})
    with pytest.raises(ValueError, match=r"1,600 bytes do not fit in .*, where 1,599 are free"):
        relabel(run)
    assert not list(tmp_path.rglob("*.*")) and "relabel: 1,600 bytes of labels, of 80 views" in capsys.readouterr().out
    usage.free = 1600
    relabel(run)
    usage.free = 0  # all that is needed is there
    relabel(changed(condensed_run, {"stored": str(tmp_path)}))


def test_settings_of_storing_need_it():
    recipe = load("sre2l/digits-ipc2")
    for change in ({"top_k": 3}, {"stored": "labels"}):
        with pytest.raises(ValueError, match=r"labels\.stored and labels\.top_k need labels\.source stored"):
            dataclasses.replace(recipe, labels=dataclasses.replace(recipe.labels, **change)).check()
        dataclasses.replace(recipe, labels=dataclasses.replace(recipe.labels, source="stored", **change)).check()


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
