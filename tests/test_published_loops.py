"""The plain loops that students are compared with: views, CutMix, training; and our reading of every label source."""

import copy

import numpy as np
import pytest
import torch
from labels import other_sources
from PIL import Image
from published_loops import (
    LoopStyle,
    PublishedLoop,
    ReplayedFiles,
    TrainingFiles,
    cut_mixed,
    draw_box,
    write_images,
    write_labels,
)
from sample_images import photograph_parts
from torch.nn import functional as F

from fastcondense.data.real import Normalization
from fastcondense.labels.views import ReplayedViews
from fastcondense.networks import zoo
from fastcondense.recipe.settings import Dataset, Labels
from fastcondense.recipe.train import Train
from fastcondense.vision import torchvision

DATASET, CPU = Dataset(image_size=24, resize=24), torch.device("cpu")


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
    epoch = PublishedLoop(copy.deepcopy(net), None, files, None, 0, 20.0, CPU)
    for (views, _), (plain, permutation, (top, left, bottom, right), _) in zip(epoch.batches(), files, strict=False):
        inside = torch.zeros(24, 24, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert torch.equal(views, torch.where(inside, plain[permutation], plain))
    losses = [epoch()[0] for _ in range(3)]
    assert losses[2] < losses[0]
    assert not torch.equal(epoch.student.head.weight, net.head.weight)


def test_sources_give_the_labels_that_were_written(tmp_path):
    """Stored ones are the generator's numbers in rows of views, epoch after epoch; FKD's those of its files."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (11, 3, 24, 24), dtype=torch.uint8, generator=generator)
    normalize = Normalization.of(DATASET, CPU)
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


@pytest.fixture
def photographs(tmp_path):
    pixels = torch.from_numpy(photograph_parts(12, 32, 32)).permute(0, 3, 1, 2)
    return TrainingFiles(write_images(tmp_path / "images", pixels), [k % 5 for k in range(12)], Dataset(image_size=32))


def test_photographs_are_parts_of_the_pictures():
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    parts = photograph_parts(4, 40, 50)
    assert parts.shape == (4, 40, 50, 3) and len(np.unique(parts.reshape(4, -1), axis=0)) == 4
    for part, picture in zip(parts[:2], (china, flower), strict=True):
        corners = np.argwhere((picture[:-39, :-49] == part[0, 0]).all(-1))
        assert any(np.array_equal(picture[r : r + 40, c : c + 50], part) for r, c in corners)
    with pytest.raises(ValueError, match="427 x 640"):
        photograph_parts(1, 500, 500)


def test_cutmix_exchanges_one_box_with_the_batch_permuted():
    views = torch.arange(6.0)[:, None, None, None].expand(6, 3, 20, 20).contiguous()
    for seed in range(20):
        generator = np.random.default_rng(seed)
        box, partners = draw_box(20, generator.uniform(), generator), torch.from_numpy(generator.permutation(6))
        mixed = cut_mixed(views.clone(), partners, box)
        changed = (mixed != views).any(1).any(0)
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        assert changed.sum() == len(rows) * len(columns)  # a rectangle, the same for all
        inside = mixed[:, 0][:, changed]
        if inside.numel():
            assert (inside == inside[:, :1]).all() and sorted(inside[:, 0].tolist()) == list(range(6))


def test_an_epoch_trains_the_student_alone(photographs):
    torch.manual_seed(0)
    teacher = zoo.build("zoo/convnet1", 5)
    student, before = zoo.build("zoo/convnet1", 5), copy.deepcopy(teacher.state_dict())
    loop = PublishedLoop(student, teacher, photographs, 4, 0, 2.0, CPU)
    views, classes = next(loop.batches())
    assert views.shape == (4, 3, 32, 32) and set(classes.tolist()) <= set(range(5))
    losses = [loop()[0] for _ in range(6)]
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_a_loop_that_does_not_read_tells_nothing(photographs):
    nets = [zoo.build("zoo/convnet1", 5) for _ in range(2)]
    loop = PublishedLoop(*nets, photographs, 4, 0, 2.0, CPU, LoopStyle(bf16=True, channels_last=True, reads_loss=False))
    weight = nets[0].head.weight.clone()
    assert loop() == (0.0, 0.0) and not torch.equal(weight, nets[0].head.weight)
