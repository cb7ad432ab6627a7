"""Rankings and mosaics against loops over single crops, with torchvision's or Pillow's own crop and resize."""

import importlib
import itertools

import numpy as np
import pytest
import torch
from crops import DIGITS, FILES, SIZE, TEACHERS, make_run, make_teachers, published_crop, write_photographs
from torch.nn import functional as F

from fastcondense.data.jobs import Job
from fastcondense.recipe.recover import Initial
from fastcondense.recover import initial, mosaic
from fastcondense.rng import Stream

transforms = importlib.import_module("torchvision.transforms.v2.functional")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"))


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
