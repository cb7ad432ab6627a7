"""FKD files that a run's settings do not follow, and files with code or damage, are refused by name."""

import dataclasses
import os

import pytest
import torch
from label_files import BATCH, CLASSES, COUNT, NORMALIZE, SIZE, image_set, run_of, write

from fastcondense.labels.fkd import FKDViews, read_fkd
from fastcondense.labels.fkd_files import check_settings, read_batch
from fastcondense.labels.views import ReplayedViews
from fastcondense.recipe.settings import Labels
from fastcondense.recipe.train import Train


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": {"batch_size": 4}}, "train.batch_size is 4, but .* made with 8"),
        ({"train": {"epochs": 4}}, "train.epochs is 4, but .* holds 3 epochs"),
        ({"mix": "mixup"}, "labels.mix is mixup, but .* made with cutmix"),
        ({"tile_shuffle": 2}, "labels.tile_shuffle must be 1, got 2"),
        ({"pool": 0.5}, "labels.pool must be 1.0, got 0.5"),
        ({"classes": 8}, r"logits \(8, 7\) for 8 classes"),
    ],
)
def test_settings_that_the_files_do_not_follow_are_refused(tmp_path, settings, message):
    write(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_fkd(run_of(**settings), tmp_path, image_set())


def test_another_order_of_classes_is_at_chance(tmp_path):
    write(tmp_path, classes=(torch.arange(COUNT) // 3 + 1) % CLASSES)
    with pytest.raises(ValueError, match=r"name the class of 3 of 63 views, which is chance; .* order of its classes"):
        read_fkd(run_of(), tmp_path, image_set())


def test_another_number_of_images_is_refused(tmp_path):
    write(tmp_path)
    views = image_set()
    fewer = ReplayedViews(views.images[:20], views.labels[:20], views.settings, NORMALIZE, 0)
    with pytest.raises(ValueError, match="holds labels of 21 images, but the set has 20"):
        read_fkd(run_of(), tmp_path, fewer)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("epoch_1", "epoch_1 is missing"),
        ("epoch_0/batch_1.tar", "epoch_0/batch_1.tar is missing"),
        ("epoch_0/batch_2.tar", "holds labels of 16 images, but the set has 21"),
        ("epoch_2/batch_1.tar", "label file .*epoch_2/batch_1.tar is missing"),
    ],
)
def test_a_missing_file_is_named(tmp_path, missing, message):
    write(tmp_path)
    (tmp_path / missing).rename(tmp_path / "away")
    with pytest.raises(ValueError, match=message):
        list(FKDViews(tmp_path, image_set(), CLASSES).epoch(2, Train(batch_size=BATCH)))


class Call:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_label_file_with_code_runs_nothing_and_is_named(tmp_path, is_zip):
    folder, ran = tmp_path / "fkd", tmp_path / "ran"
    write(folder)
    path = folder / "epoch_0" / "batch_0.tar"
    fields = torch.load(path, weights_only=False)
    torch.save([*fields[:4], Call(ran), fields[5]], path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=rf"label file {path} cannot be read: it asks for posix\.system"):
        FKDViews(folder, image_set(), CLASSES)
    assert not ran.exists()


def test_numpys_numbers_need_the_restricted_reader(tmp_path):
    """torch's own, since 2.6, refuses the published files."""
    write(tmp_path)
    path = tmp_path / "epoch_0" / "batch_0.tar"
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(path)
    batch, _ = read_batch(path, SIZE)
    assert all(type(x) is int for x in batch.box)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.full((8, 4), 0.7), "a window is not in images of 20 pixels"),
        (0, torch.full((8, 4), 1.5), "coords must be shares"),
        (0, torch.zeros(8, 4), "a window is not in images"),
        (2, torch.zeros(8, dtype=torch.int64), "must be a permutation of the batch's 8 views"),
        (3, 1.5, r"lambda must lie in \[0, 1\]"),
        (4, [0, 0, 21, 4], "the box .* is not in images of 20 pixels"),
        (4, [5, 0, 4, 4], "the box"),
        (5, torch.zeros(7, CLASSES), "7 labels of 8 views"),
        (5, None, "NoneType"),
        (1, {}, "coords have 32 values for 0 views"),
    ],
)
def test_a_file_that_cannot_be_true_is_named(tmp_path, place, value, message):
    write(tmp_path)
    path = tmp_path / "epoch_0" / "batch_0.tar"
    fields = torch.load(path, weights_only=False)
    fields[place] = value
    torch.save(fields, path)
    with pytest.raises(ValueError, match=f"batch_0.tar is no batch of FKD: .*{message}"):
        read_batch(path, SIZE)
    torch.save(fields[:5], path)
    with pytest.raises(ValueError, match="is no batch of FKD"):
        read_batch(path, SIZE)


@pytest.mark.parametrize("count", [7, 9])
def test_batches_of_another_size_in_an_epoch_are_refused(tmp_path, count):
    write(tmp_path)
    path = tmp_path / "epoch_1" / "batch_1.tar"
    fields = torch.load(path, weights_only=False)
    rows = torch.arange(count) % 8
    fields = [fields[0][rows], fields[1][rows], torch.arange(count), *fields[3:5], fields[5][rows]]
    torch.save(fields, path)
    with pytest.raises(ValueError, match=r"batch_1.tar of epoch 1 .* is not about 8 of 21 images"):
        FKDViews(tmp_path, image_set(), CLASSES).read(1, 1)


@pytest.mark.parametrize(
    "settings",
    [{"padding": 2}, {"roll": (0, 3)}, {"tile_pick": 2}, {"rand_augment": (1, 9)}, {"pool": 0.5}],
)
def test_settings_that_files_cannot_say_are_refused(settings):
    check_settings(Labels(crop_scale=(0.5, 1.0), flip=0.0, batch_norm="train", ensemble="norm-equalized"))
    with pytest.raises(ValueError, match=f"labels.{next(iter(settings))} must be"):
        check_settings(dataclasses.replace(Labels(), **settings))
