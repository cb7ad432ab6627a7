"""Stored labels outlast interruptions, fit on the disk, and are refused where they are of something else or damaged."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from labelled_runs import changed, on_the_fly, stored, write_condensed

from fastcondense.files import read_json
from fastcondense.labels import stored_labels
from fastcondense.labels.label_rows import compress
from fastcondense.labels.relabel import relabel
from fastcondense.labels.stored_labels import read_labels, replay_specification
from fastcondense.recipe.recipe import load
from fastcondense.recover.stage import condensed_set
from fastcondense.sets.condensed import CondensedSet


@pytest.fixture(scope="module")
def condensed_run(tmp_path_factory):
    return write_condensed(tmp_path_factory.mktemp("run") / "digits")


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
    teachers = [SimpleNamespace(name="t", identity="0")]
    one, two = (json.dumps(replay_specification(r, ("a", "b"), "digest", teachers, 0)) for r in (recipe, other))
    assert (one != two) == decides


@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_damaged_labels_are_stored_again(condensed_run, labelled, tmp_path, capsys, how):
    folder = tmp_path / "labels"
    shutil.copytree(labelled, folder)
    path, run = folder / "seed0" / "logits.npy", changed(condensed_run, {"stored": str(folder)})
    written = path.read_bytes()
    relabel(run)
    assert "stored again" not in capsys.readouterr().out
    if how == "flipped":  # the last byte, of the last of four epochs
        path.write_bytes(written[:-1] + bytes([written[-1] ^ 1]))
    elif how == "cut":
        path.write_bytes(written[:-1])
    else:
        path.unlink()
    relabel(run)
    assert f"from epoch {3 if how == 'flipped' else 0} on its labels are stored again" in capsys.readouterr().out
    assert path.read_bytes() == written


def test_a_damaged_array_is_named(condensed_run, labelled, tmp_path):
    shutil.copytree(labelled, tmp_path / "copy")
    path, run = tmp_path / "copy" / "seed0" / "logits.npy", changed(condensed_run, {"stored": str(tmp_path / "copy")})
    whole = path.read_bytes()
    for content, message in ((whole[:-50], "cannot be read"), (b"", "cannot be read")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"logits\.npy {message}"):
            stored(run)
    np.save(path, np.zeros((3, 10), np.float16))
    with pytest.raises(ValueError, match=r"logits\.npy is damaged: float16 \(3, 10\), not float16 \(80, 10\)"):
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
