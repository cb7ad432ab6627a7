"""Initial images: the same for every size and job, kept or made again, real ones, and files that cannot be read."""

import dataclasses
import shutil

import pytest
import torch
from crops import FILES, SIZE, make_run, make_teachers, published_crop, write_photographs

from fastcondense.data.jobs import Job, jobs
from fastcondense.recover import initial, mosaic
from fastcondense.tensor_files import read_tensors


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.mark.parametrize("kind", ["real", "mosaic"])
def test_a_small_set_is_the_beginning_of_a_large_one(kind, photographs, tmp_path):
    """Bit for bit, whatever the jobs are."""
    sets = []
    for ipc, batch_size in ((1, 100), (2, 3)):
        settings = {"kind": kind, "layout": "contiguous", "flip": 0.5}
        run = make_run(tmp_path / str(ipc), FILES, photographs, ipc, batch_size, **settings)
        made = initial.make(run, make_teachers(run)[1])
        images = torch.empty(3, ipc, 3, SIZE, SIZE)
        for job in jobs(run.recipe, 3):
            images[job.classes(), job.slots()] = made(job)
        sets.append(images)
    assert torch.equal(sets[0], sets[1][:, :1])
    assert len({image.numpy().tobytes() for image in sets[1].flatten(0, 1)}) == 6


def test_finished_classes_are_kept_and_lost_ones_come_back_the_same(photographs, tmp_path):
    run = make_run(tmp_path, FILES, photographs)
    _, teachers = make_teachers(run)
    job = Job(0, 0, 2, 0, 3)
    images = initial.make(run, teachers)(job)
    (folder,) = tmp_path.glob("initial-*")
    before = {path.name: (read_tensors(path)[0], path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert sorted(before) == [f"class-{label:05d}.safetensors" for label in range(3)]
    (folder / "class-00001.safetensors").unlink()
    assert torch.equal(initial.make(run, teachers)(job), images)
    for name, (tensors, time) in before.items():
        path = folder / name
        again = read_tensors(path)[0]
        assert tensors.keys() == again.keys() and all(torch.equal(again[key], tensors[key]) for key in tensors)
        assert (path.stat().st_mtime_ns == time) == (name != "class-00001.safetensors")


BROKEN = ("03.JPEG", "07.JPEG")
SKIPPING = dataclasses.replace(FILES, on_error="skip")


@pytest.fixture(scope="module")
def damaged(photographs, tmp_path_factory):
    """The photographs, two files of every class broken."""
    root = tmp_path_factory.mktemp("damaged")
    shutil.copytree(photographs, root, dirs_exist_ok=True)
    for name in BROKEN:
        for path in root.glob(f"train/*/{name}"):
            path.write_bytes(b"no image")
    return root


def test_candidates_that_cannot_be_read_are_left_out(damaged, tmp_path):
    run = make_run(tmp_path, SKIPPING, damaged, ipc=9, factor=1)
    _, teachers = make_teachers(run)
    names = {run.real.train.files[k].name for k in mosaic.ranked(run, teachers, 1).ids}
    assert len(names) == 9 and not names & set(BROKEN)
    with pytest.raises(ValueError, match="class 'class1' gives 9 crops, but mosaics need 10"):
        mosaic.ranked(make_run(tmp_path, SKIPPING, damaged, ipc=10, factor=1), teachers, 1)
    with pytest.raises(ValueError, match=r"0[37].JPEG is not an image"):
        initial.make(make_run(tmp_path / "raise", FILES, damaged), teachers)


def test_a_file_that_vanishes_after_it_was_scored_is_an_error(damaged, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(damaged, data)
    run = make_run(tmp_path, SKIPPING, data)
    made = initial.make(run, make_teachers(run)[1])
    for path in data.glob("train/class0/*"):
        path.unlink()
    with pytest.raises(ValueError, match="can no longer be read"):
        made(Job(0, 0, 1, 0, 1))


def test_other_real_images_stand_in_for_those_that_cannot_be_read(damaged, tmp_path):
    run = make_run(tmp_path, SKIPPING, damaged, kind="real")
    images, files = initial.make(run, [])(Job(0, 0, 15, 0, 3)), run.real.train.files
    assert set(classes_and_names(images, run)) == {(p.parent.name, p.name) for p in files if p.name not in BROKEN}


def classes_and_names(images, run):
    """Which training image each of the images is."""
    files = run.real.train.files
    good = [k for k, path in enumerate(files) if path.name not in BROKEN or path.stat().st_size > 10]
    squares = torch.stack([published_crop(run, files, k, -1) for k in good])
    nearest = torch.stack([(squares - image).abs().amax((1, 2, 3)) for image in images]).min(1)
    assert float(nearest.values.max()) < 2e-6
    return [(files[good[k]].parent.name, files[good[k]].name) for k in nearest.indices]


def test_real_images_do_not_repeat_before_all_were_seen(photographs, tmp_path):
    run = make_run(tmp_path, FILES, photographs, kind="real")
    made = initial.make(run, [])
    images = made(Job(0, 0, 25, 0, 3))
    seen = classes_and_names(images, run)
    for label in range(3):
        classes, names = zip(*seen[25 * label : 25 * label + 25], strict=True)
        assert set(classes) == {f"class{label}"}
        assert len(set(names[:11])) == len(set(names[11:22])) == 11 and names[:11] != names[11:22]
    later = made(Job(7, 23, 2, 1, 2))
    assert torch.equal(later, images.unflatten(0, (3, 25))[1:, 23:].flatten(0, 1))


def test_real_images_are_mirrored_with_the_given_probability(tmp_path):
    job = Job(0, 0, 40, 0, 10)
    runs = (make_run(tmp_path, kind="real", flip=flip) for flip in (0.0, 1.0, 0.25))
    plain, mirrored, some = (initial.make(run, [])(job) for run in runs)
    assert torch.equal(mirrored, plain.flip(3))
    is_plain, is_mirrored = ((some == other).flatten(1).all(1) for other in (plain, mirrored))
    assert bool((is_plain | is_mirrored).all()) and 0.15 < float((~is_plain).float().mean()) < 0.35


def test_noise_is_the_default():
    run = make_run(None, kind="noise")
    job = Job(0, 1, 1, 0, 4)
    assert torch.equal(initial.make(run, [])(job), initial.noise(run.recipe, run.device)(job))
