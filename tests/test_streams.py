"""Random numbers of one purpose are used for one thing: what decides an order decides nothing else."""

import numpy as np
import pytest
import torch
from scipy import stats

from fastcondense.cli import main
from fastcondense.data.real import Split, training_batches
from fastcondense.recipe.settings import Dataset
from fastcondense.recipe.shared import Views
from fastcondense.rng import Stream

RUNS = {
    "labels": "--recipe sre2l/digits --recover.iterations 2 --evaluate.baselines random_soft full_soft full",
    "own labels": "--recipe hald/digits --squeeze.self-supervision.epochs 1 --evaluate.baselines",
    "gradient": "--recipe lgm/digits --recover.iterations 6 --recover.pyramid.every 1 --evaluate.baselines nearest",
}
SHORT = "--ipc 1 --squeeze.epochs 1 --train.epochs 1 --train.seeds 1 --device cpu".split()


def places_and_areas(count=3000, epochs=4):
    """Of every image of an epoch, its place, and the height of its crop: levels rise down an image."""
    ramp = np.arange(32, dtype=np.uint8) * 8
    images = np.broadcast_to(ramp[None, :, None, None], (count, 32, 32, 3))
    dataset = Dataset(image_size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), workers=0)
    split = Split(np.zeros(count, dtype=np.int64), np.ascontiguousarray(images))
    for epoch in range(epochs):
        parts = training_batches(split, dataset, Views(), Stream(0, "test"), epoch, 500, torch.device("cpu"))
        seen = torch.cat([x for x, _ in parts])[:, 0]
        yield np.arange(count), (seen.amax((1, 2)) - seen.amin((1, 2))).numpy()


def test_where_in_its_epoch_an_image_comes_says_nothing_of_its_crop():
    for places, heights in places_and_areas():
        assert heights.std() > 0.1  # they do differ
        assert stats.spearmanr(places, heights).pvalue > 1e-3
        first, *_, last = np.split(heights, 6)
        assert stats.ks_2samp(first, last).pvalue > 1e-3


@pytest.mark.parametrize("name", RUNS)
def test_no_words_decide_an_order_and_something_else(name, tmp_path, monkeypatch):
    orders, draws = set(), set()

    def permutation(self, count, b=0, *, plain=Stream.permutation):
        orders.add(self.purpose)
        return plain(self, count, b)

    def uniform(self, a, b=0, c=0, *, plain=Stream.uniform):
        if (np.asarray(c) == 0).any():  # an order is sorted by words of c = 0
            draws.add(self.purpose)
        return plain(self, a, b, c)

    monkeypatch.setattr(Stream, "permutation", permutation)
    monkeypatch.setattr(Stream, "uniform", uniform)
    assert main(["run", *RUNS[name].split(), *SHORT, "--out", str(tmp_path / "run")]) == 0
    assert len(orders) > 1 and len(draws) > 1
    assert not orders & draws
