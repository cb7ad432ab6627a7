"""The counter-based generator: known answers, equal bits in numpy and torch, and the distributions drawn from it."""

import numpy as np
import pytest
import torch
from scipy import stats

from fastcondense.rng import Stream, philox

# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_philox_known_answers(counter, key, expected, library):
    make = (lambda v: np.array([v], dtype=np.int64)) if library == "numpy" else (lambda v: torch.tensor([v]))
    assert tuple(int(word[0]) for word in philox(tuple(map(make, counter)), key)) == expected


def test_numpy_and_torch_give_the_same_bits():
    stream, a = Stream(2**40 + 7, "test"), np.arange(999)
    for ours, theirs in zip(stream.uniform(a, 3, 5), stream.uniform(torch.from_numpy(a), 3, 5), strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())


def test_every_part_of_the_key_matters():
    draws = {
        int(words[0][0])
        for words in (
            Stream(1, "a").words(0),
            Stream(1 + 2**32, "a").words(0),
            Stream(2, "a").words(0),
            Stream(1, "b").words(0),
            Stream(1, "a").words(1),
            Stream(1, "a").words(0, 1),
            Stream(1, "a").words(0, 0, 1),
        )
    }
    assert len(draws) == 7


def test_uniform_is_uniform():
    draws = np.concatenate(Stream(0, "uniform").uniform(np.arange(5000)))
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    assert 0 <= draws.min() and draws.max() < 1


def test_permutation_is_one_and_depends_on_the_epoch():
    stream = Stream(0, "order")
    first, second = stream.permutation(1001, 0), stream.permutation(1001, 1)
    np.testing.assert_array_equal(np.sort(first), np.arange(1001))
    assert (first != second).mean() > 0.99
    places = [int(np.flatnonzero(stream.permutation(5, epoch) == 0)[0]) for epoch in range(2000)]
    assert stats.chisquare(np.bincount(places, minlength=5)).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.8, 1.0])
def test_beta_has_its_distribution(alpha):
    draws = Stream(0, "beta").beta(alpha, np.arange(5000))
    assert stats.kstest(draws, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_normal_is_normal_and_each_row_stands_alone():
    stream = Stream(0, "normal")
    both = stream.normal([(3, 0), (8, 1)], 5001)
    torch.testing.assert_close(both[1:], stream.normal([(8, 1)], 5001), rtol=0, atol=0)
    assert stats.kstest(both.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(float(np.corrcoef(both.numpy())[0, 1])) < 0.06


def test_torch_generator_is_local():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with Stream(0, "init").torch_generator(2):
        inside = torch.rand(3)
    with Stream(0, "init").torch_generator(2):
        assert torch.equal(inside, torch.rand(3))
    assert torch.equal(expected, torch.rand(3))


def test_seed_out_of_range_is_refused():
    with pytest.raises(ValueError, match="seed"):
        Stream(-1, "x").words(0)
