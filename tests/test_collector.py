"""Statistics of everything and of each class against a two-pass float64 computation, for one worker and several."""

import copy
from pathlib import Path

import pytest
import torch
import workers
from small import frozen_network
from torch import nn

from fastcondense.kernels.patch_moments.definition import patch_moments_reference
from fastcondense.log import Log
from fastcondense.recipe.recipe import Recipe, load
from fastcondense.recipe.recover import Recover
from fastcondense.recipe.settings import Dataset
from fastcondense.run import Run
from fastcondense.statistics import targets
from fastcondense.statistics.collector import Collector
from fastcondense.teachers.teacher import Teacher

LABELS = torch.tensor([2, 0, 2, 1, 2, 0, 2, 2, 0, 2])  # one image of class 1
STATISTICS = ("bn", "conv", "patch")
ROUNDING = 3e-7  # of the results, and of the BatchNorms' scales in the network before them


def network(name, num_classes=3):
    return frozen_network(name, num_classes)


def made(name, size, p, statistics=STATISTICS):
    """A teacher in float64, and the network that it was made of."""
    net = network(name).double()
    dataset = Dataset(name="digits", image_size=size, resize=size)
    teacher = Teacher.of(copy.deepcopy(net), name, "abc", range(3), dataset, statistics, p)
    teacher.fused.double()
    return teacher, net


def inputs_of(net, images):
    """The input of every BatchNorm and convolution, by name, in the order of the modules."""
    found, names = {}, [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    for name in names:
        net.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: found.update({name: x[0].clone()}))
    net(images)
    return {name: found[name] for name in names}


def moments(x):
    return x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)


def within(x, p):
    """Means of each image's own moments."""
    each = [(*moments(image), *patch_moments_reference(image, p)) for image in x.split(1)]
    return [torch.stack(vectors).mean(0) for vectors in zip(*each, strict=True)]


def truth(net, images, labels, p, class_variance):
    """Two passes over all images at once: vectors of everything, and of each class, by the layer's name."""
    everything, by_class = {}, {}
    for name, x in inputs_of(net, images).items():
        is_norm = isinstance(net.get_submodule(name), nn.BatchNorm2d)
        parts = [x[labels == k] for k in labels.unique()]
        pooled = [[*moments(y), *patch_moments_reference(y, p)] for y in (x, *parts)]
        if class_variance == "within-image":
            pooled[1:] = [within(part, p) for part in parts]
        everything[name] = pooled[0][: 2 if is_norm else 4]
        by_class[name] = [torch.stack(rows) for rows in zip(*pooled[1:], strict=True)][: 2 if is_norm else 4]
    return everything, by_class


def assert_equal(found, wanted, tolerance):
    assert list(found) == list(wanted)
    for name, vectors in wanted.items():
        assert len(found[name]) == len(vectors)
        for vector, other in zip(found[name], vectors, strict=True):
            assert vector.shape == other.shape
            assert float((vector.double() - other).norm() / other.norm()) < tolerance, name


CASES = [
    ("zoo/convnet3_w32", 18, 4, "within-image"),
    ("zoo/convnet3_w32", 18, 4, "full"),
    ("zoo/wrn16_2", 14, 4, "within-image"),
    ("torchvision/resnet18", 44, 16, "full"),
]


@pytest.mark.parametrize(("name", "size", "p", "class_variance"), CASES)
def test_equals_two_passes_in_float64(name, size, p, class_variance):
    teacher, net = made(name, size, p)
    images = 1 + torch.randn(len(LABELS), 3, size, size, dtype=torch.float64)
    wanted, wanted_classes = truth(net, images, LABELS, p, class_variance)
    collector = Collector(teacher, [layer.name for layer in teacher.layers], 3, class_variance)
    for part in torch.arange(len(LABELS)).split(4):
        collector.add(images[part], LABELS[part])
    assert_equal(collector.targets(), wanted, ROUNDING)
    assert_equal(collector.class_targets(), wanted_classes, ROUNDING)
    assert all(table.dtype == torch.float32 for tables in collector.class_targets().values() for table in tables)


def test_the_fused_moments_give_the_same_statistics_as_those_of_each_image():
    teacher, net = made("zoo/wrn16_2", 14, 4)
    images = torch.randn(len(LABELS), 3, 14, 14, dtype=torch.float64)
    collector = Collector(teacher, [layer.name for layer in teacher.layers])
    for part in torch.arange(len(LABELS)).split(3):
        collector.add(images[part], LABELS[part])
    assert_equal(collector.targets(), truth(net, images, LABELS, 4, "full")[0], ROUNDING)
    assert collector.class_targets() == {}


def test_a_large_mean_and_a_constant_channel_cost_no_digits():
    teacher, _ = made("zoo/convnet1", 8, 4, ("conv", "patch"))
    images = 1e6 + torch.randn(12, 3, 8, 8, dtype=torch.float64)
    images[:, 1] = 1e6
    collector = Collector(teacher, ["convs.0"], 3, "full")
    for image, label in zip(images.split(1), LABELS.repeat(2)[:12].split(1), strict=True):
        collector.add(image, label)
    _, var, _, _ = collector.targets()["convs.0"]
    torch.testing.assert_close(var[0::2], images.var((0, 2, 3), correction=0)[0::2].float(), rtol=1e-6, atol=0)
    assert float(var[1]) == 0 and not collector.class_targets()["convs.0"][1][:, 1].any()


def test_a_class_without_images_is_an_error():
    teacher, _ = made("zoo/convnet1", 8, 4)
    collector = Collector(teacher, [], 3)
    collector.add(torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 2, 2, 0]))
    with pytest.raises(ValueError, match="class number 1 has none"):
        collector.class_targets()


# --- what teachers make of class targets -----------------------------------------------------------------------------


def balanced(class_variance):
    """A teacher with class targets of four images a class, and these."""
    teacher, _ = made("zoo/wrn16_2", 14, 4)
    images, labels = torch.randn(12, 3, 14, 14, dtype=torch.float64), torch.arange(3).repeat(4)
    images += labels[:, None, None, None]
    collector = Collector(teacher, [], 3, class_variance)
    collector.add(images, labels)
    teacher.class_targets, teacher.class_variance = collector.class_targets(), class_variance
    return teacher, [images[labels == k] for k in range(3)]


def test_full_category_targets_are_the_moments_of_all_images_of_the_classes():
    teacher, images = balanced("full")
    wanted = teacher.batch_targets(torch.cat([images[k] for k in (2, 0, 2, 1)]))
    for found, layer in zip(teacher.category_targets(torch.tensor([2, 0, 2, 1])), wanted, strict=True):
        for vector, other in zip(found, layer, strict=True):
            torch.testing.assert_close(vector, other.float(), rtol=1e-5, atol=1e-6)


def test_published_category_targets_are_means_of_the_classes_vectors():
    teacher, _ = balanced("within-image")
    found = teacher.category_targets(torch.tensor([2, 0, 2, 1]))
    for vectors, layer in zip(found, teacher.layers, strict=True):
        for vector, table in zip(vectors, teacher.class_targets[layer.name], strict=True):
            torch.testing.assert_close(vector, (table[0] + table[1] + 2 * table[2]) / 4)
    teacher.swapped_patches = True
    swapped = teacher.category_targets(torch.tensor([2, 0, 2, 1]))
    for vectors, before, layer in zip(swapped, found, teacher.layers, strict=True):
        order = (0, 1) if layer.is_batch_norm else (0, 1, 3, 2)
        assert all(torch.equal(vector, before[k]) for vector, k in zip(vectors, order, strict=True))


def test_a_cast_teacher_shares_its_class_targets_and_takes_the_same_images():
    teacher = Teacher.of(network("zoo/wrn16_2"), "wrn", "abc", range(3), Dataset(image_size=14), STATISTICS, 4)
    teacher.class_targets, images = {"conv": (torch.zeros(3, 3),)}, torch.randn(5, 3, 14, 14)
    cast = teacher.cast(torch.bfloat16)
    assert cast.class_targets is teacher.class_targets
    for layer, other in zip(cast.batch_targets(images), teacher.batch_targets(images), strict=True):
        for vector, exact in zip(layer, other, strict=True):
            assert vector.dtype == torch.float32 and float((vector - exact).norm() / exact.norm()) < 0.03


def test_a_layer_without_class_targets_is_named():
    teacher, _ = made("zoo/convnet1", 8, 4)
    with pytest.raises(ValueError, match=r"no class targets for its layer convs\.0"):
        teacher.category_targets(torch.tensor([0]))


# --- workers ---------------------------------------------------------------------------------------------------------


def digits_run(out):
    """A run with a narrow teacher, untrained, whose targets are global and of every class."""
    recipe: Recipe = load("sre2l/digits")
    settings = Recover(statistics=STATISTICS, patch_size=4, targets=("global", "category"), target_weights=(0.5, 0.5))
    recipe = Recipe(**vars(recipe) | {"recover": settings})
    run = Run(recipe, Path(out), log=Log())
    net = network("zoo/convnet3_w32", 10)
    run.teachers = [Teacher.of(net, "zoo/convnet3_w32", run.real.classes, range(10), recipe.dataset, STATISTICS, 4)]
    return run


def share(rank, folder):
    """What one of three workers does: its parts of a run."""
    run = digits_run(folder / "run")
    targets.complete(run, run.teachers)
    torch.save([run.teachers[0].targets, run.teachers[0].class_targets], folder / f"{rank}.pt")


def test_any_number_of_workers_gives_the_targets_of_one_to_the_bit(tmp_path):
    workers.start(share, 3, tmp_path)
    alone = digits_run(tmp_path / "alone")
    targets.complete(alone, alone.teachers)
    wanted = alone.teachers[0].targets, alone.teachers[0].class_targets
    for rank in range(3):
        for kept, mine in zip(torch.load(tmp_path / f"{rank}.pt"), wanted, strict=True):
            assert list(kept) == list(mine)
            assert all(torch.equal(a, b) for name in kept for a, b in zip(kept[name], mine[name], strict=True))
    assert not list(tmp_path.rglob("part-*"))


@pytest.mark.parametrize("class_variance", ["within-image", "full"])
def test_parts_of_the_classes_are_joined_to_two_passes_in_float64(class_variance):
    teacher, net = made("zoo/convnet3_w32", 18, 4)
    images = 1 + torch.randn(len(LABELS), 3, 18, 18, dtype=torch.float64)
    names = [layer.name for layer in teacher.layers]
    whole, tables = Collector(teacher, names, 3, class_variance).like(), []
    for first, count in ((0, 1), (1, 2)):
        part = Collector(teacher, names, 3, class_variance).like(first, count)
        mine = (first <= LABELS) & (first + count > LABELS)
        for rows in torch.nonzero(mine)[:, 0].split(2):
            part.add(images[rows], LABELS[rows])
        whole.merge(part.state())
        tables.append(part.class_targets())
    everything, by_class = truth(net, images, LABELS, 4, class_variance)
    assert_equal(whole.targets(), everything, ROUNDING)
    joined = {n: tuple(map(torch.cat, zip(*(part[n] for part in tables), strict=True))) for n in tables[0]}
    assert_equal(joined, by_class, ROUNDING)


def test_a_part_without_images_of_a_class_names_it():
    teacher, _ = made("zoo/convnet1", 8, 4)
    for labels, missing in (([4, 6], 5), ([], 4)):
        part = Collector(teacher, [], 3).like(4, 3)
        if labels:
            part.add(torch.randn(len(labels), 3, 8, 8, dtype=torch.float64), torch.tensor(labels))
        with pytest.raises(ValueError, match=f"class number {missing} has none"):
            part.class_targets()
