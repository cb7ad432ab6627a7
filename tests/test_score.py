"""Scoring: exact counts, and how many images a CPU sees together."""

import pytest
import torch
from torch import nn

from fastcondense.networks.score import score


class Listed:
    """Random images of some size, in batches."""

    device = torch.device("cpu")

    def __init__(self, count, size, classes):
        generator = torch.Generator().manual_seed(size)
        self.pixels = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
        self.labels = torch.randint(classes, (count,), generator=generator)

    def batches(self, batch_size, *_):
        yield from zip(self.pixels.split(batch_size), self.labels.split(batch_size), strict=True)


class Counting(nn.Module):
    """A linear layer on mean colours that remembers how many images it saw together."""

    def __init__(self, classes):
        super().__init__()
        self.layer, self.seen = nn.Linear(3, classes).double(), []

    def forward(self, pixels):
        self.seen.append(len(pixels))
        return self.layer(pixels.double().mean((2, 3)))


@pytest.mark.parametrize(
    ("count", "size", "classes", "together"), [(70, 224, 7, 27), (300, 8, 3, 256), (3, 1200, 4, 1)]
)
def test_counts_are_exact_however_many_images_are_seen_together(count, size, classes, together):
    """27 images of 224 pixels and three channels are at most 2^22 values."""
    images, net = Listed(count, size, classes), Counting(classes)
    answers = torch.zeros(classes, classes, dtype=torch.int64)
    found = score(net, images, lambda x: x / 255, answers=answers)
    assert max(net.seen) == together and sum(net.seen) == count
    logits = net.layer(images.pixels.double().mean((2, 3)) / 255)
    ranks = (logits > logits.gather(1, images.labels[:, None])).sum(1)
    assert found["top1"] == pytest.approx(100 * (ranks < 1).double().mean().item())
    assert found["top5"] == pytest.approx(100 * (ranks < 5).double().mean().item())
    pairs = torch.zeros_like(answers).index_put_((images.labels, logits.argmax(1)), torch.tensor(1), accumulate=True)
    assert torch.equal(answers, pairs)
