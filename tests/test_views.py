"""Replayed views: what they depend on, CutMix and mixup by hand, tiles, RandAugment, and pools of batches."""

import numpy as np
import pytest
import torch

from fastcondense.data.real import Normalization, split_batches
from fastcondense.kernels.crop import crop
from fastcondense.labels.view_tables import Span
from fastcondense.labels.views import ReplayedViews
from fastcondense.recipe.settings import Dataset, Labels
from fastcondense.recipe.train import Train
from fastcondense.rng import Stream
from fastcondense.views.augment import augment, augmentations
from fastcondense.views.boxes import cutmix_boxes
from fastcondense.views.tiles import shuffle_tiles
from fastcondense.views.windows import windows
from fastcondense.vision import torchvision

NORMALIZE = Normalization.of(Dataset(name="digits", image_size=8, resize=8), torch.device("cpu"))
CHANGES = {
    "none": {"mix": "none"},
    "cutmix": {"mix": "cutmix"},
    "mixup": {"mix": "mixup"},
    "shuffle": {"tile_shuffle": 3},
    "pick": {"tile_pick": 2},
    "rand": {"mix": "mixup", "rand_augment": (2, 9)},
    "augment": {"mix": "none", "augment": ("flip", "brightness", "saturation", "contrast", "crop", "scale", "cutout")},
    "augmented": {"mix": "cutmix", "augment": ("brightness", "contrast", "crop", "rotate")},
    "all": {"tile_shuffle": 2, "tile_pick": 2, "rand_augment": (1, 14)},
}


def views(mix="cutmix", count=23, seed=3, **settings):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8)
    return ReplayedViews(images, torch.arange(count) % 5, Labels(mix=mix, **settings), NORMALIZE, seed)


def whole_epoch(source, epoch, batch_size):
    batches = list(source.epoch(epoch, Train(batch_size=batch_size, epochs=20)))
    return [
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("images", "labels", "partners", "share")
    ]


@pytest.mark.parametrize("change", CHANGES)
def test_views_have_the_same_bits_for_any_batch_size(change):
    source = views(**CHANGES[change])
    for one, other in zip(whole_epoch(source, 2, 7), whole_epoch(source, 2, 23), strict=True):
        assert torch.equal(one, other)


def test_an_epoch_shows_every_image_once_and_differs_from_others():
    source = views("none")
    assert sorted(whole_epoch(source, 0, 7)[1].tolist()) == sorted(source.labels.tolist())
    assert not torch.equal(whole_epoch(source, 0, 7)[0], whole_epoch(source, 1, 7)[0])
    assert not torch.equal(whole_epoch(source, 0, 7)[0], whole_epoch(views("none", seed=4), 0, 7)[0])


def shuffled_by_hand(image, factor, stream, sample, epoch):
    """The column strips of one image in the order of their keys, then its row strips."""
    bounds = [k * (8 // factor) + min(k, 8 % factor) for k in range(factor + 1)]  # the first 8 % factor are wider
    keys = [stream.words(sample, epoch, k) for k in range(factor)]
    for axis, word in ((2, 0), (1, 1)):
        order = sorted(range(factor), key=lambda k: int(keys[k][word][0]))
        image = torch.cat([image.narrow(axis, bounds[k], bounds[k + 1] - bounds[k]) for k in order], axis)
    return image


def seen_by_hand(source, sample, epoch):
    """One unmixed view: strips permuted, RandAugment, a tile cut out, then the window in it."""
    settings, image = source.settings, source.images[sample]
    if settings.tile_shuffle > 1:
        image = shuffled_by_hand(image, settings.tile_shuffle, Stream(3, "views/tile-shuffle"), sample, epoch)
    if settings.rand_augment[0]:
        with Stream(3, "views/rand-augment").torch_generator(sample, epoch):
            image = torchvision.transforms.v2.RandAugment(*settings.rand_augment)(image)
    if settings.tile_pick > 1:
        u_whole, u_tile, _, _ = (float(u[0]) for u in Stream(3, "views/tile-pick").uniform(sample, epoch))
        side, tile = 8 // settings.tile_pick, int(u_tile * settings.tile_pick**2)
        if u_whole >= 1 / settings.tile_pick**2:
            top, left = side * (tile // settings.tile_pick), side * (tile % settings.tile_pick)
            image = image[:, top : top + side, left : left + side]
    table = windows(Stream(3, "views/windows"), settings, np.array([sample]), epoch, *image.shape[1:])
    view = crop(image[None].contiguous(), torch.from_numpy(table), 8, gain=NORMALIZE.gain, offset=NORMALIZE.offset)
    if settings.augment:
        drawn = augmentations(Stream(3, "views/augment"), settings.augment, np.array([sample]), epoch, 8)
        view = augment(view, drawn, settings.augment)
    return view[0]


@pytest.mark.parametrize("change", CHANGES)
def test_views_are_those_of_the_contract(change):
    """What is seen by (epoch, sample), mixing by (epoch, position), from the streams themselves."""
    source, epoch = views(**CHANGES[change], mix_probability=0.7), 4
    mix, every, ones = source.settings.mix, np.arange(23), np.ones(23)
    order, partners = (Stream(3, f"views/{name}").permutation(23, epoch) for name in ("order", "partners"))
    own, other = (torch.stack([seen_by_hand(source, int(k), epoch) for k in ids]) for ids in (order, partners))
    u_apply, u_row, u_column, _ = Stream(3, "views/mix").uniform(every, epoch)
    lam = np.where(u_apply < 0.7, Stream(3, "views/lambda").beta(1.0, every, epoch), ones)
    expected, share = own, torch.from_numpy(ones if mix == "none" else lam).float()
    if mix == "mixup":
        weight = share[:, None, None, None]
        expected = weight * own + (1 - weight) * other
    if mix == "cutmix":
        expected = own.clone()
        for k, (top, bottom, left, right) in enumerate(cutmix_boxes(lam, u_row, u_column, 8)):
            expected[k, :, top:bottom, left:right] = other[k, :, top:bottom, left:right]
            share[k] = 1 - (bottom - top) * (right - left) / 64
    images, labels, partner_labels, got_share = whole_epoch(source, epoch, 5)
    assert float((images - expected).norm() / expected.norm()) < 1e-6
    torch.testing.assert_close(got_share, share, rtol=0, atol=1e-7)
    assert torch.equal(labels, source.labels[torch.from_numpy(order)])
    assert torch.equal(partner_labels, source.labels[torch.from_numpy(order if mix == "none" else partners)])


@pytest.mark.parametrize("change", ["shuffle", "pick", "rand", "augment"])
def test_a_change_is_seen_and_is_another_in_another_epoch(change):
    plain = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0, "mix": "none"}
    source, unchanged = views(**CHANGES[change] | plain), views(**plain)
    first, second, without = (
        source.crops(0, np.arange(23)),
        source.crops(1, np.arange(23)),
        unchanged.crops(0, np.arange(23)),
    )
    for one, other in ((first, without), (second, without), (first, second)):
        assert (one - other).flatten(1).abs().amax(1).gt(1e-3).float().mean() > 0.6


# --- tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_shuffled_tiles_are_those_of_a_loop(factor):
    torch.manual_seed(1)
    images, ids, stream = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8), np.arange(6) * 3, Stream(5, "test")
    made = shuffle_tiles(images, factor, stream, ids, 7)
    expected = [shuffled_by_hand(image, factor, stream, int(k), 7) for image, k in zip(images, ids, strict=True)]
    assert torch.equal(made, torch.stack(expected))


def test_every_order_of_strips_is_as_likely():
    count = 3000
    images = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3).expand(count, 1, 3, 3).contiguous()
    made = shuffle_tiles(images, 3, Stream(0, "test"), np.arange(count), 0)[:, 0]
    orders, counts = torch.unique(made.flatten(1), dim=0, return_counts=True)
    assert len(orders) == 36  # 3! orders of columns, 3! of rows
    assert float(((counts - count / 36) ** 2 / (count / 36)).sum()) < 70  # chi-square of 35 degrees: p < 0.001


@pytest.mark.parametrize("factor", [2, 4])
def test_a_tile_or_the_whole_image_is_seen_as_often_as_it_should_be(factor):
    source, count = views("none", tile_pick=factor, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0), 9000
    table, side = source.seen_windows(np.arange(count), 3)[:, :4], 8 // factor
    tiles = [(top, left, side, side) for top in range(0, 8, side) for left in range(0, 8, side)]
    whole_share, left_over = 1 / factor**2, 1.0
    for expected, share in [((0, 0, 8, 8), whole_share), *((tile, (1 - whole_share) / factor**2) for tile in tiles)]:
        found = float((table == np.array(expected)).all(1).mean())
        assert abs(found - share) < 4 * (share / count) ** 0.5
        left_over -= found
    assert abs(left_over) < 1e-9


# --- mixing ----------------------------------------------------------------------------------------------------------


def test_cutmix_boxes_follow_the_published_arithmetic():
    lam, row, column = np.array([0.0, 0.5, 0.9, 1.0]), np.array([0.5, 0.0, 0.99, 0.3]), np.array([0.5, 0.99, 0.2, 0.3])
    for size in (7, 32):
        for k, box in enumerate(cutmix_boxes(lam, row, column, size)):
            side = int(size * np.sqrt(1 - lam[k]))
            cy, cx = int(row[k] * size), int(column[k] * size)
            expected = [
                max(cy - side // 2, 0),
                min(cy + side // 2, size),
                max(cx - side // 2, 0),
                min(cx + side // 2, size),
            ]
            assert box.tolist() == expected


def test_a_last_batch_of_one_joins_the_one_before():
    assert [len(part) for part in split_batches(np.arange(21), 5)] == [5, 5, 5, 6]
    assert [len(part) for part in split_batches(np.arange(22), 5)] == [5, 5, 5, 5, 2]
    assert [len(part) for part in split_batches(np.arange(1), 5)] == [1]
    np.testing.assert_array_equal(np.concatenate(split_batches(np.arange(21), 5)), np.arange(21))


# --- pools of batches ------------------------------------------------------------------------------------------------


def test_without_a_pool_an_epoch_has_its_own_batches():
    assert views().spans(3, Train(batch_size=10)) == [Span(3, 0, 10), Span(3, 10, 20), Span(3, 20, 23)]
    assert views(count=21).spans(0, Train(batch_size=10)) == [Span(0, 0, 10), Span(0, 10, 21)]


@pytest.mark.parametrize(("pool", "size"), [(0.29, 29), (0.1, 10), (0.025, 2), (1e-6, 1)])
def test_a_pool_is_the_first_full_batches_and_each_is_drawn_as_often(pool, size):
    """Of 20 epochs with 5 full batches each: 23 images in batches of 4, 3 of an epoch in none."""
    source, train = views(pool=pool), Train(batch_size=4, epochs=20)
    drawn = [span for epoch in range(600) for span in source.spans(epoch, train)]
    assert len(drawn) == 3000
    places = np.array([span.epoch * 5 + span.begin // 4 for span in drawn])
    assert all(span.begin % 4 == 0 and span.end == span.begin + 4 <= 20 for span in drawn)
    counts = np.bincount(places)
    assert len(counts) == size
    assert float(((counts - 3000 / size) ** 2 / (3000 / size)).sum()) < 60  # chi-square of at most 28: p < 0.001


@pytest.mark.parametrize("change", CHANGES)
def test_a_batch_of_the_pool_is_the_one_of_its_own_epoch(change):
    source, train = views(**CHANGES[change], pool=0.3), Train(batch_size=5, epochs=12)
    ordinary = views(**CHANGES[change])
    for batch in source.epoch(7, train):
        own = list(ordinary.epoch(batch.span.epoch, train))[batch.span.begin // 5]
        for name in ("images", "labels", "partners", "share"):
            assert torch.equal(getattr(batch, name), getattr(own, name))
        assert batch.span == own.span


def test_draws_from_the_pool_depend_on_seed_and_epoch_and_have_repetitions():
    train = Train(batch_size=4, epochs=20)
    draws = {(seed, epoch): views(pool=0.1, seed=seed).spans(epoch, train) for seed in (0, 1) for epoch in range(4)}
    assert len({tuple(spans) for spans in draws.values()}) == 8
    assert any(len(set(spans)) < len(spans) for spans in draws.values())


def test_a_set_smaller_than_a_batch_is_one_batch_of_the_pool():
    spans = views(pool=0.5).spans(9, Train(batch_size=64, epochs=6))
    assert len(spans) == 1 and spans[0].epoch < 3 and (spans[0].begin, spans[0].end) == (0, 23)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": ("flip",), "mix": "mixup"}, "labels.augment needs labels.mix none or cutmix, got mixup"),
        ({"tile_pick": 2, "padding": 4}, "labels.tile_pick needs labels.padding 0"),
        ({"batch_norm": "train", "batch_norm_size": 1}, "batch_norm_size of 2 or more, got 1"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Labels(**settings).check("labels", 32)
