"""What a fingerprint catches, and what it lets pass."""

import dataclasses

import numpy as np
import pytest
import torch
from small import frozen_network

from fastcondense.data.real import Normalization
from fastcondense.kernels.replay_crop import replay_crop
from fastcondense.labels import fingerprint as fingerprints
from fastcondense.labels import views
from fastcondense.labels.fingerprint import compare, fingerprint, sample_views
from fastcondense.labels.labels import TeacherLabels
from fastcondense.labels.views import ReplayedViews
from fastcondense.recipe.settings import Dataset, Labels
from fastcondense.recipe.train import Train
from fastcondense.teachers.teacher import Teacher

CLASSES = [str(k) for k in range(5)]
DATASET = Dataset(name="digits", image_size=15, resize=15, mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.25))
NORMALIZE = Normalization.of(DATASET, torch.device("cpu"))
TRAIN = Train(epochs=7, batch_size=40)
PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (300, 3, 15, 15)).astype(np.uint8))
LABELS = torch.arange(5).repeat_interleave(60)


def teacher(seed=0, outputs=range(5), has_unfused=False):
    net = frozen_network("zoo/convnet3_w32", 5, seed)
    return Teacher.of(net, "net", CLASSES, outputs, DATASET, has_unfused=has_unfused)


def look(pixels=PIXELS, made=None, seed=3, train=TRAIN, **labels):
    settings = Labels(**labels)
    source = TeacherLabels([made or teacher(has_unfused=settings.is_in_training)], settings, seed)
    return sample_views(ReplayedViews(pixels, LABELS, settings, NORMALIZE, seed), source, train)


def test_probes_are_the_first_views_of_the_first_and_the_last_epoch():
    seen = look(mix="mixup")
    settings = Labels(mix="mixup")
    replayed = ReplayedViews(PIXELS, LABELS, settings, NORMALIZE, 3)
    net = frozen_network("zoo/convnet3_w32", 5)
    for half, epoch in ((slice(0, 128), 0), (slice(128, 256), 6)):
        images = torch.cat([batch.images for batch in replayed.epoch(epoch, TRAIN)])[:128]
        assert float((net(images) - seen.logits[half]).abs().max()) < 1e-5
        assert float((images.mean((1, 2, 3)) - seen.pixels[half, 0]).abs().max()) < 1e-6
    kept = fingerprint(seen)
    assert len(kept["logits"]) == 256 and len(kept["tables"]) == 64
    assert compare(kept, seen).kind == "match"


def test_a_set_smaller_than_the_probes_is_probed_as_a_whole():
    settings, few = Labels(), torch.arange(0, 300, 60)
    replayed = ReplayedViews(PIXELS[few], LABELS[few], settings, NORMALIZE, 0)
    seen = sample_views(replayed, TeacherLabels([teacher()], settings, 0), TRAIN)
    assert seen.logits.shape == (10, 5) and compare(fingerprint(seen), seen).kind == "match"
    once = sample_views(replayed, TeacherLabels([teacher()], settings, 0), dataclasses.replace(TRAIN, epochs=1))
    assert once.logits.shape == (5, 5)


def test_rounding_matches_and_bfloat16_drifts():
    kept = fingerprint(look())
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        verdict = compare(kept, look())
    finally:
        torch.set_num_threads(threads)
    assert verdict.kind == "match" and " % of" in verdict.reason
    low = teacher().cast(torch.bfloat16)
    seen = look()
    coarse = [low.logits(batch.images.bfloat16()) for epoch in (0, 6) for batch in _batches(epoch)]
    drifted = seen._replace(logits=torch.cat([torch.cat(coarse[:4])[:128], torch.cat(coarse[4:])[:128]]).float())
    verdict = compare(kept, drifted)
    assert verdict.kind == "drift", verdict
    error = (drifted.logits - seen.logits).gather(1, seen.logits.topk(5).indices).abs().max()
    scale = seen.logits.topk(5).values.square().mean().sqrt()
    assert f"{float(error / scale):.1e} at most" in verdict.reason


def _batches(epoch):
    replayed = ReplayedViews(PIXELS, LABELS, Labels(), NORMALIZE, 3)
    return [batch for batch, _ in zip(replayed.epoch(epoch, TRAIN), range(4), strict=False)]


def nearest(images, ids, windows, size, *, gain, offset, partners=None, partner_windows=None, **mixing):
    """The same views with pixels that are moved by half a pixel, as another resize kernel would see them."""
    moved = ((images.float() + images.roll(1, -1).float()) / 2).to(torch.uint8)
    more = {} if partners is None else {"partners": partners, "partner_windows": partner_windows, **mixing}
    return replay_crop(moved, ids, windows, size, gain=gain, offset=offset, **more)


def test_what_differs_is_named(monkeypatch):
    kept = fingerprint(look())

    def verdict(**changed):
        found = compare(kept, look(**changed))
        assert found.kind == "mismatch"
        return found.reason

    assert "another seed" in verdict(seed=4)
    assert "windows, partners" in verdict(crop_scale=(0.5, 1.0))
    assert "other weights" in verdict(made=teacher(1))
    assert "another order of classes" in verdict(made=teacher(0, (1, 0, 2, 3, 4)))
    seen_first = int(ReplayedViews(PIXELS, LABELS, Labels(), NORMALIZE, 3).order_stream.permutation(300, 0)[5])
    flipped = PIXELS.clone()
    flipped[seen_first] = flipped[seen_first].flip(-1)
    assert "logits differ" in verdict(pixels=flipped) or "views look different" in verdict(pixels=flipped)
    monkeypatch.setattr(views, "replay_crop", nearest)
    assert "resize kernel" in verdict()


def test_training_mode_labels_depend_on_their_groups():
    kept = fingerprint(look(batch_norm="train", batch_norm_size=8))
    assert compare(kept, look(batch_norm="train", batch_norm_size=8)).kind == "match"
    assert compare(kept, look(batch_norm="train", batch_norm_size=10)).kind == "mismatch"
    assert compare(kept, look()).kind == "mismatch"


def test_hard_labels_have_no_fingerprint():
    from fastcondense.labels.labels import hard_labels

    with pytest.raises(ValueError, match="hard labels"):
        sample_views(ReplayedViews(PIXELS, LABELS, Labels(), NORMALIZE, 3), hard_labels, TRAIN)
    assert fingerprints.NUM_SAMPLED == 256
