"""What the arms of the comparison are shown."""

import pytest
import torch
from labelled_runs import changed, made

from fastcondense.recover.stage import condensed_set
from fastcondense.students.arms import CONDENSED, Arm
from fastcondense.students.kept import student_folder
from fastcondense.students.students import task_of
from fastcondense.teachers.kept import labelling_teachers

FLAGS = (
    "--squeeze.teachers zoo/convnet1 --squeeze.epochs 1 --squeeze.gate-images 0 --recover.iterations 1 "
    "--train.epochs 2 --train.seeds 1 --evaluate.baselines --labels.tile-pick 2"
).split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run whose images are made of tiles, and the same of whole images."""
    run = made(tmp_path_factory.mktemp("run") / "digits", FLAGS, "recover", "relabel")
    return run, changed(run.out, {"source": "teachers", "tile_pick": 1})


@pytest.mark.parametrize("images", ["random", "herding", "full"])
def test_real_images_are_not_made_of_tiles(runs, images):
    tiled, whole = (
        [task.make(item).views for item in task.batches(0)]
        for run in runs
        for task in [task_of(run, Arm(images), 0, condensed_set(run), labelling_teachers(run))]
    )
    assert len(tiled) == len(whole)
    assert all(map(torch.equal, tiled, whole))
    assert student_folder(runs[0], Arm(images), 0) == student_folder(runs[1], Arm(images), 0)
    assert student_folder(runs[0], CONDENSED, 0) != student_folder(runs[1], CONDENSED, 0)
