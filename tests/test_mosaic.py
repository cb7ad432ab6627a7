"""Rankings and mosaics against loops over single crops, with torchvision's or Pillow's own crop and resize."""

import dataclasses
import importlib
import io
import itertools
import shutil

import numpy as np
import pytest
import torch
from image_files import scene
from PIL import Image
from rich.console import Console
from torch.nn import functional as F

from fastcondense.data.jobs import Job, jobs
from fastcondense.loaders.folder import cut_center
from fastcondense.log import Log
from fastcondense.networks import zoo
from fastcondense.recipe.recipe import Recipe
from fastcondense.recipe.recover import Initial, Recover
from fastcondense.recipe.settings import Dataset, Squeeze
from fastcondense.recover import initial, mosaic
from fastcondense.rng import Stream
from fastcondense.run import Run
from fastcondense.teachers.teacher import Teacher
from fastcondense.tensor_files import read_tensors
from fastcondense.views.windows import windows

transforms = importlib.import_module("torchvision.transforms.v2.functional")

DIGITS = Dataset(name="digits", image_size=8, resize=8, mean=(0.3, 0.4, 0.5), std=(0.3, 0.2, 0.25))
SIZE = 27  # odd, and no multiple of 2: tiles of 14 and 13 pixels
FILES = dataclasses.replace(DIGITS, name="folder", image_size=SIZE, resize=32)
TEACHERS = ("zoo/convnet1", "zoo/convnet3_w32")


def make_run(out, dataset=DIGITS, data=None, ipc=2, batch_size=100, **settings):
    made = Initial(**{"kind": "mosaic", "candidates": 20, "crops": 3} | settings)
    recipe = Recipe(ipc=ipc, seed=4, dataset=dataset, squeeze=Squeeze(teachers=TEACHERS))
    recipe = dataclasses.replace(recipe, recover=Recover(initial=made, batch_size=batch_size)).check()
    return Run(recipe, out, data, log=Log(Console(file=io.StringIO())))


def make_teachers(run):
    torch.manual_seed(0)
    classes = run.real.classes
    nets = [zoo.build(name, len(classes)).eval().requires_grad_(False) for name in TEACHERS]
    named = zip(nets, TEACHERS, strict=True)
    return nets, [Teacher.of(net, name, classes, range(len(classes)), run.recipe.dataset) for net, name in named]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """train/<class>/<image> of three classes and many sizes; val/ is there because a data set needs it."""
    root = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", 11), ("val", 1)):
        for label in range(3):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for k in range(count):
                scene(30 + 17 * k % 71, 25 + 23 * k % 67, 100 * label + k).save(folder / f"{k:02d}.JPEG", quality=90)
    return root


@pytest.fixture(scope="module")
def packed(photographs, tmp_path_factory):
    """The same as .beton files, pixels as decoded."""
    pytest.importorskip("ffcv", reason="the extra ffcv is not installed: bash scripts/setup.sh dev ffcv")
    from fastcondense.loaders.class_folders import index_folder
    from fastcondense.loaders.pack import Packing, pack

    root = tmp_path_factory.mktemp("packed")
    for split in ("train", "val"):
        files, labels, classes = index_folder(photographs / split)
        pack(files, labels, classes, root / f"{split}.beton", Packing(encoding="raw"), source=photographs / split)
    return root


def published_crop(run, files, sample, number):
    """One crop as the specification says, normalised: [3, side, side]."""
    dataset, views, split = run.recipe.dataset, run.recipe.recover.initial, run.real.train
    size = dataset.image_size
    side = size // views.factor if views.crop_size == "tile" and number >= 0 else size
    image = Image.open(files[sample]).convert("RGB") if files else Image.fromarray(split.images[sample])
    if number < 0:
        pixels = torch.from_numpy(np.array(cut_center(image, dataset.resize, size))).permute(2, 0, 1).float()
    else:
        table = windows(Stream(4, "initial/windows"), views, np.array([sample]), number, image.height, image.width)
        top, left, height, width, flip, _, _ = table[0].tolist()
        if files:  # image files are cut by Pillow, to whole levels
            cut = image.crop((left, top, left + width, top + height)).resize((side, side), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1).float()
        else:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
            pixels = transforms.resized_crop(pixels, top, left, height, width, [side, side], antialias=True)
        pixels = pixels.flip(2) if flip else pixels
    mean, std = (torch.tensor(values)[:, None, None] for values in (dataset.mean, dataset.std))
    return (pixels / 255 - mean) / std


def published_score(run, nets, crop, label):
    """Cross-entropy of the mean logits on the padded crop."""
    size, side = run.recipe.dataset.image_size, crop.shape[1]
    canvas = torch.zeros(1, 3, size, size)
    begin = (size - side) // 2
    canvas[0, :, begin : begin + side, begin : begin + side] = crop
    with torch.no_grad():
        logits = sum(net(canvas)[0] for net in nets) / len(nets)
    return float(-F.log_softmax(logits, 0)[label])


def published_ranking(run, nets, files, label):
    """(score, sample, crop) of all ranked crops, ascending: a loop over images and crops."""
    settings, members = run.recipe.recover.initial, np.flatnonzero(run.real.train.labels == label)
    order = Stream(4, "initial/candidates").permutation(len(members), label)
    ids = members[order][: settings.candidates or None].tolist()

    def score(sample, number):
        return published_score(run, nets, published_crop(run, files, sample, number), label)

    if settings.preselected:
        ids = [sample for _, sample in sorted((score(sample, -1), sample) for sample in ids)][: settings.preselected]
    found = []
    for sample in ids:
        scored = [(score(sample, k), sample, k) for k in (range(settings.crops) if settings.crops else [-1])]
        found += [min(scored)] if settings.one_per_image else scored
    return sorted(found)


METHODS = {
    "rded": {},
    "edc": {"preselected": 6, "one_per_image": False, "crop_size": "image", "crop_ratio": (3 / 4, 4 / 3), "flip": 0.5},
    "cim": {"crops": 0, "crop_size": "image"},
    "one teacher": {"teachers": TEACHERS[1:], "candidates": 0},
}


@pytest.mark.parametrize(
    ("source", "method"),
    [("digits", "rded"), ("digits", "edc"), *itertools.product(["photographs"], METHODS), ("packed", "edc")],
)
def test_the_ranking_is_the_published_one(source, method, request, tmp_path):
    data = None if source == "digits" else request.getfixturevalue(source)
    files = request.getfixturevalue("photographs").glob("train/*/*") if data else []
    run = make_run(tmp_path, FILES if data else DIGITS, data, **METHODS[method])
    nets, teachers = make_teachers(run)
    observers = nets[1:] if method == "one teacher" else nets
    for label in (0, 2):
        wanted = published_ranking(run, observers, files := sorted(files), label)[:8]
        found = mosaic.ranked(run, teachers, label)
        scores, ids, crops = (torch.tensor(column) for column in zip(*wanted, strict=True))
        # FFCV's pixels may differ from Pillow's by a level.
        tolerance = 2e-3 if source == "packed" else 2e-6
        torch.testing.assert_close(found.scores, scores, rtol=0, atol=tolerance, check_dtype=False)
        assert torch.equal(found.ids, ids) and torch.equal(found.crops, crops)
        assert found.scores.dtype == torch.float32
        pairs = zip(ids.tolist(), crops.tolist(), strict=True)
        pixels = torch.stack([published_crop(run, files, *pair) for pair in pairs])
        level = 1.01 / 255 / min(DIGITS.std)
        tolerance = level if source == "packed" else 2e-6
        torch.testing.assert_close(mosaic.read_crops(run, found.ids, found.crops), pixels, rtol=0, atol=tolerance)


def test_scores_tell_crops_apart_that_the_teachers_are_sure_of():
    logits = torch.tensor([[30.0, 1.0, 2.0], [25.0, 4.0, -3.0], [0.0, 90.0, 3.0], [0.5, 0.1, 0.2]])
    exact = F.cross_entropy(logits.double(), torch.zeros(4, dtype=torch.int64), reduction="none")
    found = mosaic.cross_entropy(logits, 0)
    assert found.dtype == torch.float32 and float(found.min()) > 0
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=0)  # float64 itself rounds 1 + 1e-12
    torch.testing.assert_close(found[2:].double(), exact[2:], rtol=1e-6, atol=0)


def shown(factor, size, tiles):
    """A mosaic pixel by pixel from tiles [factor^2, 3, side, side], for nearest pixels or tiles that fit."""
    large, rest = -(-size // factor), size % factor
    bounds = np.cumsum([0, *([large] * rest), *([size // factor] * (factor - rest))])
    result = torch.full((3, size, size), float("nan"))
    for q, tile in enumerate(tiles):
        (top, bottom), (left, right) = bounds[q // factor :][:2], bounds[q % factor :][:2]
        side = tile.shape[1]
        for y in range(top, bottom):
            for x in range(left, right):
                result[:, y, x] = tile[:, (y - top) * side // (bottom - top), (x - left) * side // (right - left)]
    return result


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("size", [6, 7, 27])
@pytest.mark.parametrize("whole", [False, True])
def test_tiles_lie_row_by_row_and_fill_the_image(factor, size, whole):
    side = size if whole else size // factor
    tiles = torch.randn(2, factor**2, 3, side, side)
    stitched = mosaic.stitch(tiles, size, "nearest")
    for made, parts in zip(stitched, tiles, strict=True):
        assert torch.equal(made, shown(factor, size, parts))
    if side == size // factor and size % factor == 0:
        assert torch.equal(stitched, mosaic.stitch(tiles, size, "antialias"))


def test_shrinking_averages_pixels():
    tiles = torch.randn(1, 4, 3, 12, 12)
    stitched = mosaic.stitch(tiles, 12, "antialias")
    wanted = transforms.resize(tiles[0, 1], [6, 6], antialias=True)
    torch.testing.assert_close(stitched[0, :, :6, 6:], wanted)


def test_layouts():
    rank_major, contiguous = Initial(layout="rank-major"), Initial(layout="contiguous", factor=3)
    assert mosaic.tile_ranks(rank_major, 5, 3).tolist() == [3, 8, 13, 18]
    assert mosaic.tile_ranks(contiguous, 5, 1).tolist() == list(range(9, 18))
    seen = torch.cat([mosaic.tile_ranks(rank_major, 5, slot) for slot in range(5)])
    assert sorted(seen.tolist()) == list(range(20))


@pytest.mark.parametrize("crop", [(4, 4), (5, 5), (7, 8), (8, 8)])
def test_a_crop_stands_in_the_middle_of_mean_colour(crop):
    framed = mosaic.frame(torch.ones(1, 3, *crop), 8)
    assert framed.shape == (1, 3, 8, 8) and framed.sum() == 3 * crop[0] * crop[1]
    rows, columns = framed[0, 0].any(1).nonzero(), framed[0, 0].any(0).nonzero()
    for inside, extent in ((rows, crop[0]), (columns, crop[1])):
        assert int(inside[0]) == (8 - extent) // 2 and len(inside) == extent


@pytest.mark.parametrize("layout", ["rank-major", "contiguous"])
def test_a_job_gets_the_mosaics_of_its_slots(layout, tmp_path):
    run = make_run(tmp_path, ipc=3, layout=layout)
    _, teachers = make_teachers(run)
    made, job = initial.make(run, teachers), Job(0, 1, 2, 4, 3)
    images = made(job)
    assert images.shape == (6, 3, 8, 8) and images.dtype == torch.float32
    for image, label, slot in zip(images, job.classes().tolist(), job.slots().tolist(), strict=True):
        ranking = mosaic.ranked(run, teachers, label)
        ranks = mosaic.tile_ranks(run.recipe.recover.initial, 3, slot)
        tiles = [published_crop(run, [], int(ranking.ids[r]), int(ranking.crops[r])) for r in ranks]
        torch.testing.assert_close(image, shown(2, 8, tiles), rtol=0, atol=2e-6)


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


def test_rankings_are_shared_by_what_agrees_in_all_that_decides_them(photographs, tmp_path):
    def folders(**settings):
        run = make_run(tmp_path, FILES, photographs, **settings)
        teachers = make_teachers(run)[1]
        mosaic.ranked(run, teachers, 0)
        return len(list(tmp_path.glob("initial-*")))

    assert folders() == folders(ipc=1) == folders(layout="contiguous", teachers=TEACHERS) == 1
    assert folders(resize="antialias", batch_size=3) == 1
    assert folders(crops=2) == 2 and folders(teachers=TEACHERS[:1]) == 3 and folders(factor=1) == 4


@pytest.mark.parametrize(
    ("settings", "count"),
    [({}, 11), ({"candidates": 5}, 5), ({"preselected": 4}, 4), ({"crops": 0, "one_per_image": False}, 11)],
)
def test_too_few_images_is_one_line(settings, count, photographs, tmp_path):
    run = make_run(tmp_path, FILES, photographs, ipc=3, **settings)
    with pytest.raises(ValueError, match=f"^class 'class0' gives {count} crops, but mosaics need 12: ipc 3 times.*$"):
        initial.make(run, make_teachers(run)[1])
    assert not list(tmp_path.glob("initial-*"))
    run = make_run(tmp_path, FILES, photographs, ipc=3, candidates=4, one_per_image=False)  # all crops are enough
    assert initial.make(run, make_teachers(run)[1])(Job(0, 0, 3, 0, 1)).shape == (3, 3, SIZE, SIZE)


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
