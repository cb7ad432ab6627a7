"""The plain PyTorch loop that `bench train` compares with: its views, its CutMix, and that it trains."""

import copy

import numpy as np
import pytest
import torch
from fkd import write_images
from published_training import LoopStyle, PublishedLoop, TrainingFiles, cutmix
from sample_images import photograph_parts

from fastcondense.networks import zoo
from fastcondense.recipe.settings import Dataset

CPU = torch.device("cpu")


@pytest.fixture
def files(tmp_path):
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
        mixed = cutmix(views.clone(), np.random.default_rng(seed))
        changed = (mixed != views).any(1).any(0)
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        assert changed.sum() == len(rows) * len(columns)  # a rectangle, the same for all
        inside = mixed[:, 0][:, changed]
        if inside.numel():
            assert (inside == inside[:, :1]).all() and sorted(inside[:, 0].tolist()) == list(range(6))


def test_an_epoch_trains_the_student_alone(files):
    torch.manual_seed(0)
    teacher = zoo.build("zoo/convnet1", 5)
    student, before = zoo.build("zoo/convnet1", 5), copy.deepcopy(teacher.state_dict())
    loop = PublishedLoop(student, teacher, files, 4, 0, 2.0, CPU)
    views, classes = next(loop.batches())
    assert views.shape == (4, 3, 32, 32) and set(classes.tolist()) <= set(range(5))
    losses = [loop()[0] for _ in range(6)]
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_a_loop_that_does_not_read_tells_nothing(files):
    nets = [zoo.build("zoo/convnet1", 5) for _ in range(2)]
    loop = PublishedLoop(*nets, files, 4, 0, 2.0, CPU, LoopStyle(bf16=True, channels_last=True, reads_loss=False))
    weight = nets[0].head.weight.clone()
    assert loop() == (0.0, 0.0) and not torch.equal(weight, nets[0].head.weight)
