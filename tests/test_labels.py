"""Replayed views and labels: what they depend on, CutMix and mixup by hand, and the students' losses."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastcondense import zoo
from fastcondense.kernels.crop import crop
from fastcondense.labels import (
    ReplayedViews,
    TeacherLabels,
    Wanted,
    cutmix_boxes,
    hard_labels,
    student_loss,
)
from fastcondense.real import Normalization, split_batches
from fastcondense.settings import Dataset, Labels, Train
from fastcondense.teacher import Teacher
from fastcondense.windows import windows

DATASET = Dataset(name="digits", image_size=8, resize=8)
NORMALIZE = Normalization.of(DATASET, torch.device("cpu"))


def views(mix="cutmix", count=23, seed=3, **settings):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8)
    return ReplayedViews(images, torch.arange(count) % 5, Labels(mix=mix, **settings), NORMALIZE, seed)


def whole_epoch(source, epoch, batch_size):
    batches = list(source.epoch(epoch, batch_size))
    return [
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("images", "labels", "partners", "share")
    ]


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_views_do_not_depend_on_the_batch_size(mix):
    for one, other in zip(whole_epoch(views(mix), 2, 4), whole_epoch(views(mix), 2, 23), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_an_epoch_shows_every_image_once_and_differs_from_others():
    source = views("none")
    assert sorted(whole_epoch(source, 0, 7)[1].tolist()) == sorted(source.labels.tolist())
    assert not torch.equal(whole_epoch(source, 0, 7)[0], whole_epoch(source, 1, 7)[0])
    assert not torch.equal(whole_epoch(source, 0, 7)[0], whole_epoch(views("none", seed=4), 0, 7)[0])


def test_the_crop_of_a_sample_is_its_own():
    source = views()
    together = source.crops(1, np.arange(23))
    torch.testing.assert_close(source.crops(1, np.array([17])), together[17:18], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_views_are_those_of_the_contract(mix):
    """Windows by (epoch, sample), mixing by (epoch, position), from the streams themselves."""
    source, epoch = views(mix, mix_probability=0.7), 4
    every, ones = np.arange(23), np.ones(23)
    order, partners = (s.permutation(23, epoch) for s in (source.order_stream, source.partner_stream))

    def crops(ids):
        table = torch.from_numpy(windows(source.window_stream, source.settings, ids, epoch, 8, 8))
        return crop(source.images[torch.from_numpy(ids)], table, 8, gain=NORMALIZE.gain, offset=NORMALIZE.offset)

    own, other = crops(order), crops(partners)
    u_apply, u_row, u_column, _ = source.mix_stream.uniform(every, epoch)
    lam = np.where(u_apply < 0.7, source.lambda_stream.beta(1.0, every, epoch), ones)
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


def test_cutmix_pastes_the_partner():
    source = views(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    order, partners = (s.permutation(23, 6) for s in (source.order_stream, source.partner_stream))
    own, other = (NORMALIZE(source.images[torch.from_numpy(ids)]) for ids in (order, partners))
    images, labels, partner_labels, share = whole_epoch(source, 6, 5)
    is_own, is_other = (torch.isclose(images, x, atol=1e-6).all(1) for x in (own, other))
    assert bool((is_own | is_other).all())
    pasted = (~is_own).float().mean((1, 2))
    differ = torch.from_numpy(order != partners)
    torch.testing.assert_close(pasted[differ], 1 - share[differ], rtol=0, atol=1e-6)
    assert torch.equal(labels, source.labels[torch.from_numpy(order)])
    assert torch.equal(partner_labels, source.labels[torch.from_numpy(partners)])


def test_mixup_blends():
    source = views("mixup", crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    order, partners = (s.permutation(23, 0) for s in (source.order_stream, source.partner_stream))
    own, other = (NORMALIZE(source.images[torch.from_numpy(ids)]) for ids in (order, partners))
    images, _, _, share = whole_epoch(source, 0, 23)
    weight = share[:, None, None, None]
    torch.testing.assert_close(images, weight * own + (1 - weight) * other, rtol=1e-5, atol=1e-5)
    assert 0.3 < float(share.mean()) < 0.7


def test_mix_probability_zero_mixes_nothing():
    for one, other in zip(whole_epoch(views(mix_probability=0.0), 0, 9), whole_epoch(views("none"), 0, 9), strict=True):
        if one.dtype == torch.float32:
            torch.testing.assert_close(one, other)


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


def test_labels_come_from_the_teachers_mean_logits_and_the_right_outputs():
    nets = [zoo.build("zoo/convnet1", 7) for _ in range(2)]
    outputs = [6, 1, 0, 2, 5]
    teachers = [Teacher.of(net, str(k), range(5), outputs, DATASET) for k, net in enumerate(nets)]
    batch = next(views().epoch(0, 6))
    wanted = TeacherLabels(teachers)(batch)
    with torch.no_grad():
        expected = torch.stack([net.eval()(batch.images)[:, outputs] for net in nets])
    assert wanted.logits is not None
    torch.testing.assert_close(wanted.logits, expected, rtol=1e-4, atol=1e-5)
    for target in (wanted, hard_labels(batch)):
        assert target.labels is batch.labels and target.partners is batch.partners and target.share is batch.share
    assert hard_labels(batch).logits is None


def test_the_recipe_names_the_loss():
    torch.manual_seed(0)
    z, t = torch.randn(6, 5), torch.randn(3, 6, 5)
    labels, partners, share = torch.arange(6) % 5, torch.arange(6) % 3, torch.rand(6)
    hard = share[:, None] * F.one_hot(labels, 5) + (1 - share[:, None]) * F.one_hot(partners, 5)
    p, q = torch.softmax(t.mean(0) / 4, 1), torch.softmax(z / 4, 1)
    divergence, entropy = (p * (p / q).log()).sum() / 6, F.cross_entropy(z, hard)
    for loss, expected in {
        "kl": divergence,
        "kl_t2": 16 * divergence,
        "mse_ce": F.mse_loss(z, t.mean(0)) + 0.3 * entropy,
    }.items():
        train = Train(loss=loss, temperature=4.0, ce_weight=0.3)
        torch.testing.assert_close(student_loss(z, Wanted(t, labels, partners, share), train), expected)
        torch.testing.assert_close(student_loss(z, Wanted(None, labels, partners, share), train), entropy)


def test_a_last_batch_of_one_joins_the_one_before():
    assert [len(part) for part in split_batches(np.arange(21), 5)] == [5, 5, 5, 6]
    assert [len(part) for part in split_batches(np.arange(22), 5)] == [5, 5, 5, 5, 2]
    assert [len(part) for part in split_batches(np.arange(1), 5)] == [1]
    np.testing.assert_array_equal(np.concatenate(split_batches(np.arange(21), 5)), np.arange(21))
