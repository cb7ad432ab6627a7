"""Label folders of strangers, stored and FKD: what their names and files claim costs nothing, and damage is named."""

import json
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from memory import begin_peak, peak

from fastcondense.data.real import Normalization
from fastcondense.labels.fkd import FKDViews
from fastcondense.labels.fkd_files import is_fkd
from fastcondense.labels.label_rows import array_shapes
from fastcondense.labels.stored_labels import (
    first_rows,
    read_labels,
    replay_specification,
    store_labels,
    stored_digest,
)
from fastcondense.labels.view_tables import Span
from fastcondense.labels.views import ReplayedViews
from fastcondense.recipe.recipe import load
from fastcondense.recipe.settings import Dataset, Labels
from fastcondense.sets.condensed import CondensedSet

CPU = torch.device("cpu")
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 2, 3, 8, 8), np.uint8))
SET = CondensedSet(IMAGES, ("a", "b", "c"))
VIEWS = ReplayedViews(*SET.flat(), Labels(), Normalization.of(Dataset(name="digits"), CPU), 0)


@pytest.mark.parametrize("name", ["epoch_999999999999", "epoch_0/batch_999999999999.tar", "epoch_2", "epoch_00"])
def test_numbers_in_names_of_fkd_files_are_no_sizes(tmp_path, name):
    (tmp_path / "epoch_0").mkdir()
    (tmp_path / "epoch_0" / "batch_0.tar").touch()
    (tmp_path / name).mkdir()
    began_at, held = time.monotonic(), begin_peak()
    with pytest.raises(ValueError, match=r"epoch_1 is missing|batch_1\.tar is missing|batch_0\.tar cannot be read"):
        FKDViews(tmp_path, VIEWS, 3)
    assert time.monotonic() - began_at < 1 and peak() - held < 50e6


def test_a_folder_named_as_no_epoch_is_no_fkd(tmp_path):
    for name in ("epoch_01", "epoch_\u0661", "epoch_1x", "epoch_"):
        (tmp_path / name).mkdir()
    assert not is_fkd(tmp_path)


@pytest.fixture
def run(tmp_path):
    """A run whose labels are stored, of two epochs of six views."""
    recipe = load("sre2l/digits-ipc2")
    labels = replace(recipe.labels, source="stored", stored=str(tmp_path / "labels"))
    recipe = replace(recipe, labels=labels, train=replace(recipe.train, epochs=2, batch_size=4, seeds=1))
    folder = tmp_path / "labels" / "seed0"
    folder.mkdir(parents=True)
    rows, shapes = first_rows(VIEWS, recipe.train), array_shapes(12, 3, 0)
    assert rows == [0, 6, 12]
    arrays = {name: np.ones(shape, kind) for name, (shape, kind) in shapes.items()}
    np.save(folder / "logits.npy", arrays["logits"])
    manifest = {
        "format": 2,
        "replay": replay_specification(recipe, SET.classes, SET.sha256, (), 0),
        "first_rows": rows,
        "epochs_done": 2,
        "digests": [stored_digest(arrays, rows, epoch) for epoch in range(2)],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return SimpleNamespace(recipe=recipe, out=tmp_path / "run", device=CPU, folder=folder, manifest=manifest)


def labels_of(run):
    return read_labels(run, SET, VIEWS, (), 0)[1]


def test_a_changed_byte_of_stored_labels_is_seen_in_its_epoch_alone(run):
    path = run.folder / "logits.npy"
    assert labels_of(run).logits(Span(1, 2, 6)).tolist() == [[1.0] * 3] * 4
    whole = path.read_bytes()
    for place in range(len(whole) - 36, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        labels = labels_of(run)
        assert labels.logits(Span(0, 0, 6)).shape == (6, 3)
        with pytest.raises(ValueError, match=r"seed0 is damaged: its labels of epoch 1 are not those written"):
            labels.logits(Span(1, 0, 4))


@pytest.mark.parametrize("rows", [[0, 12, 12], [0, 0, 12], [0, 6, 6], [0, 3, 12]])
def test_rows_of_other_views_are_refused(run, rows):
    (run.folder / "manifest.json").write_text(json.dumps(run.manifest | {"first_rows": rows}))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged: field first_rows|not float16 \(6, 3\)"):
        labels_of(run)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_labels_are_neither_written_nor_read_through_what_is_no_file(run, tmp_path, kind):
    mine, path = tmp_path / "mine", run.folder / "logits.npy"
    mine.write_text("precious")
    path.unlink()
    path.symlink_to(mine) if kind == "link" else os.mkfifo(path)
    for use in (lambda: store_labels(run, SET, ()), lambda: labels_of(run)):
        with pytest.raises(ValueError, match=r"logits\.npy is a (link out of|pipe)"):
            use()
    assert mine.read_text() == "precious"
