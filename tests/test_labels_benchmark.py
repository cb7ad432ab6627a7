"""The published way to train on stored labels, as the benchmark writes it, and our reading of every source."""

import copy

import pytest
import torch
from fkd import PublishedEpoch, ReplayedFiles, write_images, write_labels
from label_sources import other_sources
from PIL import Image
from torch.nn import functional as F

from fastcondense.data.real import Normalization
from fastcondense.labels.views import ReplayedViews
from fastcondense.networks import zoo
from fastcondense.recipe.settings import Dataset, Labels, Train
from fastcondense.vision import torchvision

DATASET = Dataset(image_size=24, resize=24)


@pytest.fixture
def files(tmp_path):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (11, 3, 6, 6), dtype=torch.uint8, generator=generator).repeat_interleave(4, 2)
    images = write_images(tmp_path / "images", pixels.repeat_interleave(4, 3))
    return ReplayedFiles(images, write_labels(tmp_path / "epoch_0", 11, 24, 4, 5), DATASET)


def test_views_are_torchvisions_crops_of_the_stored_windows(files):
    """Pillow's bilinear filter is the antialiased one of tensors, on bytes that are rounded between the two axes."""
    assert [len(ids) for _, ids in files.batches] == [4, 4, 3]
    assert sorted(number for _, ids in files.batches for number in ids) == list(range(11))
    mean, std = (torch.tensor(values)[:, None, None] for values in (DATASET.mean, DATASET.std))
    for (path, ids), (views, permutation, box, logits) in zip(files.batches, files, strict=False):
        windows, flips, *stored = torch.load(path)
        assert torch.equal(permutation, stored[0]) and box == stored[2] and torch.equal(logits, stored[3])
        assert sorted(permutation.tolist()) == list(range(len(ids))) and logits.dtype == torch.float16
        assert 0 <= box[0] <= box[2] <= 24 and 0 <= box[1] <= box[3] <= 24
        for view, number, window, flip in zip(views, ids, windows, flips, strict=True):
            image = torchvision.transforms.functional.pil_to_tensor(Image.open(files.images[number]))
            top, left = (24 * window[:2]).round().int().tolist()
            bottom, right = (24 * (window[:2] + window[2:])).round().int().tolist()
            part = image[:, top:bottom, left:right][None].float()
            wanted = F.interpolate(part, (24, 24), mode="bilinear", antialias=True)[0] / 255
            wanted = (wanted.flip(2) if flip else wanted).sub(mean).div(std)
            torch.testing.assert_close(view, wanted, rtol=0, atol=1.6 / 255 / min(DATASET.std))


def test_an_epoch_mixes_and_trains(files):
    torch.manual_seed(0)
    net = zoo.build("zoo/convnet1", 5)
    epoch = PublishedEpoch(copy.deepcopy(net), files, 0, 20.0, torch.device("cpu"))
    for (views, _), (plain, permutation, (top, left, bottom, right), _) in zip(epoch.batches(), files, strict=False):
        inside = torch.zeros(24, 24, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert torch.equal(views, torch.where(inside, plain[permutation], plain))
    losses = [epoch() for _ in range(3)]
    assert losses[2] < losses[0]
    assert not torch.equal(epoch.net.head.weight, net.head.weight)


def test_sources_give_the_labels_that_were_written(tmp_path):
    """Stored ones are the generator's numbers in rows of views, epoch after epoch; FKD's those of its files."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (11, 3, 24, 24), dtype=torch.uint8, generator=generator)
    normalize = Normalization.of(DATASET, torch.device("cpu"))
    views, train = ReplayedViews(pixels, torch.arange(11) % 7, Labels(), normalize, 0), Train(batch_size=4)
    sources = other_sources(views, 7, train, 2, tmp_path)
    written = torch.randn(22, 7, generator=torch.Generator().manual_seed(0)).half().float()
    wanted = {
        name: [source.label(batch) for epoch in range(2) for batch in source.views.epoch(epoch, train)]
        for name, source in sources.items()
    }
    logits = {name: torch.cat([labels.logits[0] for labels in wanted[name]]) for name in sources if name != "hard"}
    assert torch.equal(logits["stored"], written)
    largest = written.topk(5, 1)
    assert torch.equal(logits["stored-top-5"].gather(1, largest.indices), largest.values)
    files = [tmp_path / "fkd" / f"epoch_{epoch}" / f"batch_{number}.tar" for epoch in range(2) for number in range(3)]
    assert torch.equal(logits["fkd"], torch.cat([torch.load(path)[5] for path in files]).float())
    assert len(wanted["hard"]) == 6 and all(labels.logits is None for labels in wanted["hard"])
    assert [name for name, source in sources.items() if source.without_host] == ["hard"]
