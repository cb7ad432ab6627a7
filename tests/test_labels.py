"""Replayed views and labels: what they depend on, CutMix and mixup by hand, and the students' losses."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastcondense import zoo
from fastcondense.labels import (
    HardLabels,
    ReplayedViews,
    TeacherLabels,
    Wanted,
    cutmix_boxes,
    inside_boxes,
    mixed_labels,
    student_loss,
)
from fastcondense.real import Normalization, split_batches
from fastcondense.recipe import Dataset, Labels, Train
from fastcondense.teacher import Teacher

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


def test_cutmix_pastes_the_partner():
    source = views(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    order, partners = (s.permutation(23, 6) for s in (source.order_stream, source.partner_stream))
    own, other = (NORMALIZE(source.images[torch.from_numpy(ids)]) for ids in (order, partners))
    images, labels, partner_labels, share = whole_epoch(source, 6, 5)
    is_own, is_other = (torch.isclose(images, whole, atol=1e-6).all(1) for whole in (own, other))
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
    mask = inside_boxes(torch.tensor([[1, 3, 0, 2]]), 4)[0]
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[1:3, 0:2] = True
    assert torch.equal(mask, expected)


def test_labels_come_from_the_teachers_mean_logits_and_the_right_outputs():
    nets = [zoo.build("zoo/convnet1", 7) for _ in range(2)]
    outputs = [6, 1, 0, 2, 5]
    teachers = [Teacher.of(net, str(k), range(5), outputs, DATASET) for k, net in enumerate(nets)]
    batch = next(views().epoch(0, 6))
    wanted = TeacherLabels(teachers)(batch)
    with torch.no_grad():
        expected = torch.stack([net.eval()(batch.images)[:, outputs] for net in nets]).mean(0)
    torch.testing.assert_close(wanted.logits, expected, rtol=1e-4, atol=1e-5)
    assert HardLabels(5)(batch).logits is None
    hard = mixed_labels(batch, 5)
    torch.testing.assert_close(hard.sum(1), torch.ones(6))
    row = torch.zeros(5)
    row[batch.labels[0]] += batch.share[0]
    row[batch.partners[0]] += 1 - batch.share[0]
    torch.testing.assert_close(hard[0], row)


def test_student_losses():
    torch.manual_seed(0)
    z, t = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    hard = torch.softmax(torch.randn(6, 5, dtype=torch.float64), 1)
    p, q = torch.softmax(t / 4, 1), torch.softmax(z / 4, 1)
    divergence = (p * (p / q).log()).sum() / 6
    entropy = -(hard * torch.log_softmax(z, 1)).sum(1).mean()
    for loss, expected in {
        "kl": divergence,
        "kl_t2": 16 * divergence,
        "mse_ce": ((z - t) ** 2).mean() + 0.3 * entropy,
    }.items():
        train = Train(loss=loss, temperature=4.0, ce_weight=0.3)
        torch.testing.assert_close(student_loss(z, Wanted(t, hard), train), expected)
        torch.testing.assert_close(student_loss(z, Wanted(None, hard), train), entropy)
    assert float(F.cross_entropy(z, hard) - entropy) == pytest.approx(0, abs=1e-12)


def test_a_last_batch_of_one_joins_the_one_before():
    assert [len(part) for part in split_batches(np.arange(21), 5)] == [5, 5, 5, 6]
    assert [len(part) for part in split_batches(np.arange(22), 5)] == [5, 5, 5, 5, 2]
    assert [len(part) for part in split_batches(np.arange(1), 5)] == [1]
    np.testing.assert_array_equal(np.concatenate(split_batches(np.arange(21), 5)), np.arange(21))
